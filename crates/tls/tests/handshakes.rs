//! Real handshakes on loopback: who is let in, what is known of him, and what new files change.

use std::time::Duration;

use pontoon_tls::testing::Authority;
use pontoon_tls::{Certificate, ClientStream, ClientTls, ServerTls, accept, dial};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;

/// Listens; the address, and the accepted connections.
async fn listen(
    tls: ServerTls,
) -> (String, impl tokio_stream::Stream<Item = std::io::Result<ClientStream>> + Unpin) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (address, accept(listener, Some(tls)))
}

/// One byte there and back, so that both sides have finished the handshake.
async fn echo(
    address: &str,
    client: &ClientTls,
    server: &mut (impl tokio_stream::Stream<Item = std::io::Result<ClientStream>> + Unpin),
) -> Result<pontoon_tls::ConnectionInfo, std::io::Error> {
    let ask = async {
        let mut stream = dial(address, Some(client)).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    let answer = async {
        let mut stream = server.next().await.expect("listens")?;
        let byte = stream.read_u8().await?;
        stream.write_all(&[byte]).await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream.connect_info())
    };
    // A refused handshake never reaches the accepting side.
    tokio::select! {
        biased;
        both = async { tokio::try_join!(ask, answer) } => {
            let (byte, info) = both?;
            assert_eq!(byte, b'x');
            Ok(info)
        }
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("neither refused nor connected"),
    }
}

#[tokio::test]
async fn a_certificate_of_the_authority_is_let_in_and_known() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new("ours");
    let ca = authority.write(directory.path());
    let own = authority.issue(directory.path(), "store", &[]);
    let bound = authority.issue(
        directory.path(),
        "alice",
        &["pontoon://keyspace/tenant-a", "pontoon://keyspace/tenant-b", "https://elsewhere/"],
    );
    let server = ServerTls::load(own, Some(ca.clone())).expect("usable files");
    let (address, mut connections) = listen(server).await;

    let client = ClientTls::load(ca.clone(), Some(bound)).expect("usable files");
    let info = echo(&address, &client, &mut connections).await.expect("let in");
    assert!(info.encrypted);
    let certificate = info.certificate.expect("was shown");
    assert_eq!(certificate.common_name.as_deref(), Some("alice"));
    assert!(certificate.may_use("tenant-a") && certificate.may_use("tenant-b"));
    assert!(!certificate.may_use("tenant-c") && !certificate.may_use("default"));

    let by_name = address.replace("127.0.0.1", "localhost");
    let info = echo(&by_name, &client, &mut connections).await.expect("let in");
    assert_eq!(info.server_name.as_deref(), Some("localhost"));

    let nobody = ClientTls::load(ca, None).expect("usable files");
    let error = echo(&address, &nobody, &mut connections).await.expect_err("shows no certificate");
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let (here, there) =
        (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (our_ca, their_ca) = (ours.write(here.path()), theirs.write(there.path()));
    let server =
        ServerTls::load(ours.issue(here.path(), "store", &[]), Some(our_ca.clone())).expect("usable files");
    let (address, mut connections) = listen(server).await;

    let stranger = theirs.issue(there.path(), "mallory", &[]);
    let stranger = ClientTls::load(our_ca.clone(), Some(stranger)).expect("usable files");
    let error = echo(&address, &stranger, &mut connections).await.expect_err("of another authority");
    assert!(error.to_string().contains("UnknownCA"), "the server says what is wrong: {error}");

    let suspicious = ClientTls::load(their_ca, None).expect("usable files");
    let error = echo(&address, &suspicious, &mut connections).await.expect_err("the server is a stranger");
    assert!(error.to_string().contains("127.0.0.1"), "names whom it dialled: {error}");

    // Somebody who says nothing keeps nobody waiting.
    let _silent = tokio::net::TcpStream::connect(&address).await.expect("connects");
    let friend = ClientTls::load(our_ca, Some(ours.issue(here.path(), "bob", &[]))).expect("usable files");
    echo(&address, &friend, &mut connections).await.expect("let in");
}

#[tokio::test]
async fn new_files_are_taken_over_and_bad_ones_change_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Authority::new("first");
    let ca = first.write(directory.path());
    let own = first.issue(directory.path(), "store", &[]);
    let server = ServerTls::load(own.clone(), None).expect("usable files");
    let mut reloader = server.reloader();
    let (address, mut connections) = listen(server).await;
    let old = ClientTls::load(ca.clone(), None).expect("usable files");
    echo(&address, &old, &mut connections).await.expect("let in");
    assert!(!reloader.check().expect("nothing is new"));

    std::fs::write(&own.chain, "nonsense").expect("writes");
    let error = reloader.check().expect_err("nonsense").to_string();
    assert!(error.contains("store.pem"), "{error}");
    assert!(!reloader.check().expect("told once"));
    echo(&address, &old, &mut connections).await.expect("the old certificate still serves");

    let second = Authority::new("second");
    let _ = second.write(directory.path());
    let _ = second.issue(directory.path(), "store", &[]);
    assert!(reloader.check().expect("usable files"));
    echo(&address, &old, &mut connections).await.expect_err("of an authority that this client does not know");
    // The dialer follows too. A change of the file is seen by its time or its size.
    let mut follows = old.reloader();
    std::fs::write(&ca, format!("{}\n", std::fs::read_to_string(&ca).expect("reads"))).expect("writes");
    assert!(follows.check().expect("usable files"));
    echo(&address, &old, &mut connections).await.expect("let in");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new("ours");
    let ca = authority.write(directory.path());
    let (a, b) = (authority.issue(directory.path(), "a", &[]), authority.issue(directory.path(), "b", &[]));
    let missing = Certificate { chain: directory.path().join("none.pem"), key: a.key.clone() };
    let swapped = Certificate { chain: a.chain.clone(), key: b.key };
    let no_key = Certificate { chain: a.chain.clone(), key: ca.clone() };
    for (certificate, expected) in
        [(missing, "none.pem"), (swapped, "do not belong together"), (no_key, "private key")]
    {
        let error = ServerTls::load(certificate, None).expect_err("unusable").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = ClientTls::load(a.key, None).expect_err("no certificate in it").to_string();
    assert!(error.contains("a.key") && error.contains("holds no certificate"), "{error}");
}
