//! Real stores on a real file system that somebody else fills up.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use pontoon_proto::etcdserverpb::PutRequest;
use tonic::Code;

use crate::cluster::{Cluster, retry};

fn free(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).expect("a file system");
    stat.f_bavail * stat.f_frsize
}

/// Run by `just small-disk`, which mounts a file system of 1 GiB and has temporary directories made there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PONTOON_SMALL_DISK, a small file system, as the directory for temporary files"]
async fn writes_are_refused_before_a_real_disk_is_full_and_taken_again_afterwards() {
    let mounted = std::env::var("PONTOON_SMALL_DISK").expect("PONTOON_SMALL_DISK is not set");
    let cluster = Cluster::start(3, &[]);
    assert!(cluster.data_dir(0).starts_with(&mounted), "temporary files do not go to {mounted}");
    cluster.put(0, "before", "value").await;

    // Less than the reserve of 64 MiB, for all stores alike.
    let ballast = Path::new(&mounted).join("ballast");
    let mut file = File::create(&ballast).expect("a file");
    while free(Path::new(&mounted)) > 45 << 20 {
        file.write_all(&[7; 1 << 16]).expect("there is room");
    }
    file.sync_all().expect("there is room");
    let put = |i: usize, key: &str| {
        let request = PutRequest { key: key.to_owned().into(), value: "v".into(), ..PutRequest::default() };
        async move { (i, request) }
    };
    for i in 0..3 {
        let refused = retry("a refusal", || async {
            let (i, request) = put(i, "while full").await;
            match cluster.kv(i).await.put(request).await {
                Err(refused) if refused.code() == Code::ResourceExhausted => Ok(refused),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let message = refused.message();
        assert!(message.starts_with("pontoon: no space on the file system of"), "{message}");
        assert!(message.contains(&mounted) && message.contains("/log"), "{message}");
        let outcome = refused.metadata().get("pontoon-outcome").and_then(|v| v.to_str().ok());
        assert_eq!(outcome, Some("not-executed"));
        assert_eq!(cluster.range(i, "before", false).await.count, 1, "reads go on");
    }
    let status = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["status", "--group", "default", "--output", "json", "--endpoints", &cluster.endpoint(0)])
        .output()
        .expect("the binary runs");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("a document");
    assert_eq!((&status["space_low"], &status["status"]), (&true.into(), &"cluster member".into()));

    drop(file);
    std::fs::remove_file(&ballast).expect("removed");
    for i in 0..3 {
        cluster.put(i, "after", "value").await;
        assert!(!cluster.log(i).contains("the log store failed"), "{}", cluster.log(i));
    }
}
