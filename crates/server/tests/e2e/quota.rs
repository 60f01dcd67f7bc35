//! The quota of a keyspace: what it stops, whom it does not, and how it ends.

use pontoon_proto::etcdserverpb::alarm_request::AlarmAction;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::lease_client::LeaseClient;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest,
    RangeRequest, RequestOp, StatusRequest, TxnRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, retry};
use crate::keyspaces::pontoon;

fn to_tenant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("pontoon-keyspace", "tenant".parse().expect("ASCII"));
    request
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: vec![b'v'; 100_000].into(), ..PutRequest::default() }
}

fn assert_no_space<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.expect_err("there is no space");
    assert_eq!(
        (status.code(), status.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
}

async fn fill(kv: &mut KvClient<Channel>) -> i64 {
    let mut revision = 0;
    for _ in 0..100 {
        match kv.put(to_tenant(put("k"))).await {
            Ok(done) => revision = done.into_inner().header.expect("a header").revision,
            Err(full) => {
                assert_no_space(Err::<(), _>(full));
                return revision;
            }
        }
    }
    panic!("10 MB went into a quota of 4 MiB");
}

async fn alarms(cluster: &Cluster, store: usize, tenant: bool) -> Vec<i32> {
    let get = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
    let mut client = MaintenanceClient::new(cluster.channel(store).await);
    let request = if tenant { to_tenant(get) } else { Request::new(get) };
    let found = client.alarm(request).await.expect("answers").into_inner().alarms;
    found.into_iter().map(|alarm| alarm.alarm).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_keyspace_stops_alone_and_goes_on_when_there_is_room() {
    let cluster = Cluster::start(3, &["--quota-backend-bytes", "4MiB"]);
    cluster.leader(&[0, 1, 2]).await;
    let (code, out, err) = pontoon(&cluster, &["keyspace", "create", "tenant"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let mut kv = cluster.kv(0).await;
    let revision = fill(&mut kv).await;
    assert!((38..45).contains(&revision), "4 MiB take about 40 puts of 100 kB: {revision}");
    let nospace = i32::from(AlarmType::Nospace);
    for i in 0..3 {
        assert_eq!(alarms(&cluster, i, true).await, [nospace]);
        assert_eq!(alarms(&cluster, i, false).await, [0; 0], "another keyspace has nothing to do with it");
        let mut kv = cluster.kv(i).await;
        // Small ones too: the alarm stops them, on every store.
        let small = PutRequest { key: "s".into(), ..PutRequest::default() };
        assert_no_space(kv.put(to_tenant(small.clone())).await);
        let txn = TxnRequest {
            success: vec![RequestOp { request: Some(Op::RequestPut(small)) }],
            ..TxnRequest::default()
        };
        assert_no_space(kv.txn(to_tenant(txn)).await);
        let grant = LeaseGrantRequest { ttl: 60, id: 0 };
        assert_no_space(LeaseClient::new(cluster.channel(i).await).lease_grant(to_tenant(grant)).await);
        let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
        let read = kv.range(to_tenant(get)).await.expect("reads go on").into_inner();
        assert_eq!(read.kvs[0].mod_revision, revision, "and nothing was written");
        cluster.put(i, "elsewhere", "fine").await;
        let mut status = MaintenanceClient::new(cluster.channel(i).await);
        let status = status.status(to_tenant(StatusRequest {})).await.expect("answers").into_inner();
        assert!(status.errors.iter().any(|e| e.ends_with("alarm:NOSPACE ")), "{:?}", status.errors);
        assert_eq!(status.db_size_quota, 4 << 20);
        assert!((3_900_000..=4 << 20).contains(&status.db_size_in_use), "{}", status.db_size_in_use);
    }
    // To disarm without making room helps nobody.
    let mut maintenance = MaintenanceClient::new(cluster.channel(1).await);
    let raised = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
    let raised = maintenance.alarm(to_tenant(raised)).await.expect("answers").into_inner().alarms[0];
    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate.into(),
        member_id: raised.member_id,
        alarm: raised.alarm,
    };
    maintenance.alarm(to_tenant(disarm)).await.expect("disarms");
    retry("raised again", || async {
        // A store that has not heard of the disarming refuses by the old alarm, and raises no new one.
        assert_no_space(cluster.kv(0).await.put(to_tenant(put("k"))).await);
        match alarms(&cluster, 2, true).await {
            raised if raised == [nospace] => Ok(()),
            raised => Err(format!("{raised:?}")),
        }
    })
    .await;

    // Deletions and compactions go on; what they free ends it, and nobody has to be told.
    let delete = DeleteRangeRequest { key: "k".into(), ..DeleteRangeRequest::default() };
    let deleted = kv.delete_range(to_tenant(delete)).await.expect("deletes").into_inner();
    assert_eq!(deleted.deleted, 1);
    let to = deleted.header.expect("a header").revision;
    kv.compact(to_tenant(CompactionRequest { revision: to, physical: true })).await.expect("compacts");
    retry("put after there is room", || {
        let mut kv = kv.clone();
        async move { kv.put(to_tenant(put("k"))).await.map_err(|e| e.to_string()) }
    })
    .await;
    for i in 0..3 {
        assert_eq!(alarms(&cluster, i, true).await, [0; 0]);
    }
    // And it can be filled again.
    fill(&mut kv).await;
    assert_eq!(alarms(&cluster, 0, true).await, [nospace]);
}
