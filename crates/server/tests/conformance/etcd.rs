//! A real etcd of one member.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tonic::transport::Endpoint;

use crate::cluster::PATIENCE;

/// A running etcd; ends with this value.
pub(crate) struct Etcd {
    pub(crate) port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        let held: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<_> = held.iter().map(|l| l.local_addr().expect("bound").port()).collect();
        drop(held);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let directory = tempfile::tempdir().expect("a directory");
        let child = Command::new("etcd")
            .args(["--name", "e", "--log-level", "error", "--data-dir"])
            .arg(directory.path())
            .args(["--listen-client-urls", &url(ports[0]), "--advertise-client-urls", &url(ports[0])])
            .args(["--listen-peer-urls", &url(ports[1]), "--initial-advertise-peer-urls", &url(ports[1])])
            .args(["--initial-cluster", &format!("e={}", url(ports[1]))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the etcd server is on the PATH (Debian: etcd-server)");
        let start = Instant::now();
        let endpoint = Endpoint::from_shared(url(ports[0])).expect("an address");
        while endpoint.connect().await.is_err() {
            assert!(start.elapsed() < PATIENCE, "etcd does not listen");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Self { port: ports[0], child, _directory: directory }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
