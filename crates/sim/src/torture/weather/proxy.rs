//! A proxy in front of a store, whose rate can be changed: all connections through it share so many bytes a second each way.
//! Several proxies can share one wire; each can be cut by itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// As much as the link carries.
pub(crate) const UNLIMITED: u64 = u64::MAX;
/// One piece: connections take turns by pieces, as packets do on a wire.
const PIECE_BYTES: usize = 16 << 10;
/// How far a link may be ahead of its rate.
const BURST: Duration = Duration::from_millis(2);
/// With a rate so low, nothing passes until it is higher.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One direction of a link.
#[derive(Debug)]
struct Direction {
    rate: AtomicU64,
    /// When the wire is free again. The lock is fair, so connections take turns.
    free_at: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Direction {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            rate: AtomicU64::new(UNLIMITED),
            free_at: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
        })
    }

    /// Waits until the wire has taken these bytes.
    async fn pass(&self, bytes: usize) {
        loop {
            let rate = self.rate.load(Ordering::Relaxed);
            if rate == UNLIMITED {
                break;
            }
            let mut free_at = self.free_at.lock().await;
            if rate == 0 {
                drop(free_at);
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let now = Instant::now();
            let taken = Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free_at = (*free_at).max(now - BURST) + taken;
            // While one piece is on the wire the others wait for the lock.
            tokio::time::sleep_until(*free_at).await;
            break;
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What the connections of some proxies share, each way.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    towards: Arc<Direction>,
    back: Arc<Direction>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self { towards: Direction::new(), back: Direction::new() }
    }

    /// Bytes a second each way; 0: nothing passes, and nothing is lost.
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        self.towards.rate.store(bytes_per_second, Ordering::Relaxed);
        self.back.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes that have passed towards the target.
    pub(crate) fn carried(&self) -> u64 {
        self.towards.bytes.load(Ordering::Relaxed)
    }
}

/// A proxy to one address.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) wire: Wire,
    /// Nothing passes here, whatever the wire carries: towards the target, and back.
    cut: Arc<[AtomicBool; 2]>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Listens on a free port, and connects to `target` for each connection.
    pub(crate) async fn to(target: SocketAddr) -> io::Result<Self> {
        Self::over(Wire::new(), target).await
    }

    /// The same, over a wire that others may use as well.
    pub(crate) async fn over(wire: Wire, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let (shared, is_cut) = (wire.clone(), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (wire, cut) = (shared.clone(), Arc::clone(&is_cut));
                connections.spawn(async move {
                    let Ok(far) = dial(target).await else { return };
                    if near.set_nodelay(true).is_err() {
                        return;
                    }
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    tokio::select! {
                        () = carry(near_read, far_write, &wire.towards, &cut[0]) => {}
                        () = carry(far_read, near_write, &wire.back, &cut[1]) => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, wire, cut, task })
    }

    /// See [`Wire::set_rate`].
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        self.wire.set_rate(bytes_per_second);
    }

    /// See [`Wire::carried`].
    pub(crate) fn carried(&self) -> u64 {
        self.wire.carried()
    }

    /// Whether what comes in here stays here until it is whole again, as packets do that are sent again and again.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.set_cut_towards(cut);
        self.set_cut_back(cut);
    }

    /// The same, only of what goes towards the target.
    pub(crate) fn set_cut_towards(&self, cut: bool) {
        self.cut[0].store(cut, Ordering::Relaxed);
    }

    /// The same, only of what comes back.
    pub(crate) fn set_cut_back(&self, cut: bool) {
        self.cut[1].store(cut, Ordering::Relaxed);
    }
}

/// With a small send buffer: what a wire has not taken yet should wait at the sender, not in this process.
async fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(64 << 10)?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: &Direction, cut: &AtomicBool) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        while cut.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        direction.pass(n).await;
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twice the bytes take about twice the time, and a link of rate 0 keeps what it is given.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_link_has_a_rate_and_loses_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap()).await.unwrap();
        proxy.set_rate(1 << 20);
        let mut near = TcpStream::connect(proxy.address).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let start = Instant::now();
        let reader = tokio::spawn(async move {
            let mut all = vec![0; 512 << 10];
            far.read_exact(&mut all).await.unwrap();
            let took = start.elapsed();
            let mut last = [0; 3];
            far.read_exact(&mut last).await.unwrap();
            (took, last)
        });
        near.write_all(&vec![7; 512 << 10]).await.unwrap();
        while proxy.carried() < 512 << 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
        proxy.set_rate(0);
        near.write_all(b"end").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!reader.is_finished());
        proxy.set_rate(UNLIMITED);
        let (took, last) = reader.await.unwrap();
        assert!(took >= Duration::from_millis(450), "{took:?}");
        assert_eq!(&last, b"end");
    }
}
