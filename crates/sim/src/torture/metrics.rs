//! What stores say in their metrics.

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A counter of the store that serves clients at `address`.
///
/// # Errors
/// It cannot be asked, or has no such counter.
pub(crate) async fn counter(address: &str, name: &str) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    let value = page.lines().find(|line| line.contains(name) && !line.starts_with('#'));
    let value = value.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("{address} has no {name} in its metrics"))
}
