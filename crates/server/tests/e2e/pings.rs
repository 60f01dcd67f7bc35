//! What etcd's clients hear that ask too often whether the store is there.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE};

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Sends so many pings at once, and reads until the store closes the connection, or has answered them all.
fn heard(cluster: &Cluster, pings: usize) -> Vec<u8> {
    let mut stream = TcpStream::connect(cluster.endpoint(0)).expect("connects");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("writes");
    stream.write_all(&SETTINGS).expect("writes");
    stream.write_all(&PING.repeat(pings)).expect("writes");
    let (start, mut heard, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
    let answers = |heard: &[u8]| heard.windows(8).filter(|w| *w == &PING[9..]).count();
    while answers(&heard) < pings {
        assert!(start.elapsed() < PATIENCE, "{heard:?}");
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => heard.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pings_too_often_is_told_and_cut_off() {
    let cluster = Cluster::start(1, &[]);
    let says_why = |heard: &[u8]| heard.windows(14).any(|w| w == b"too_many_pings");
    assert!(!says_why(&heard(&cluster, 3)), "three are borne");
    let heard = heard(&cluster, 50);
    assert!(says_why(&heard), "{heard:?}");
    // Everybody else is served.
    cluster.put(0, "k", "v").await;
}
