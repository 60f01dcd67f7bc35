//! Before the load: keyspaces exist, and keys that are to be read are there.

use anyhow::Context;
use pontoon_proto::etcdserverpb::kv_client::KvClient;
use pontoon_proto::etcdserverpb::request_op::Request as Op;
use pontoon_proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::material::{Material, Random};
use super::{Global, Load};
use crate::cli::connect::{Dialer, refusal};
use crate::cli::dev::create_keyspaces;

/// Puts in one transaction: below etcd's limit of 128.
const BATCH_OPS_MAX: usize = 100;
/// Bytes of values in one transaction: below etcd's limit of 1.5 MiB for a request.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Metadata that names the keyspace.
pub(super) const KEYSPACE_METADATA: &str = "pontoon-keyspace";

/// Makes missing keyspaces, and for loads that read, missing keys.
pub(super) fn run(load: &Load, global: &Global) -> anyhow::Result<()> {
    let material = Material::new(load)?;
    if material.keyspaces.is_empty() && load.reads_percent == 0 {
        return Ok(());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let address = &global.endpoints[0];
        let dialer = Dialer::new(global)?;
        create_keyspaces(&dialer, address, &material.keyspaces).await?;
        if load.reads_percent == 0 {
            return Ok(());
        }
        let mut client = KvClient::new(dialer.channel(address).await?);
        let mut random = Random::new(load.args.seed, u64::MAX - 1);
        let mut names: Vec<Option<MetadataValue<Ascii>>> = Vec::new();
        for name in &material.keyspaces {
            names.push(Some(name.parse()?));
        }
        if names.is_empty() {
            names.push(None);
        }
        for name in &names {
            fill(&mut client, &material, name.as_ref(), &mut random)
                .await
                .map_err(|status| refusal(&dialer, address, &status))
                .context("writing the keys to be read")?;
        }
        Ok(())
    })
}

/// Writes all keys of one keyspace unless it holds as many already.
async fn fill(
    client: &mut KvClient<Channel>,
    material: &Material,
    keyspace: Option<&MetadataValue<Ascii>>,
    random: &mut Random,
) -> Result<(), tonic::Status> {
    let count = RangeRequest {
        key: "bench/".into(),
        range_end: "bench0".into(), // '0' follows '/': every key that begins with `bench/`.
        count_only: true,
        ..RangeRequest::default()
    };
    let there = client.range(in_keyspace(count, keyspace)).await?.into_inner().count;
    if usize::try_from(there).is_ok_and(|there| there >= material.keys.len()) {
        return Ok(());
    }
    let value_size = material.value(random).len().max(1);
    let batch = (BATCH_BYTES_MAX / value_size).clamp(1, BATCH_OPS_MAX);
    for keys in material.keys.chunks(batch) {
        let put = |key: &bytes::Bytes, random: &mut Random| PutRequest {
            key: key.clone(),
            value: material.value(random),
            ..PutRequest::default()
        };
        let success =
            keys.iter().map(|key| RequestOp { request: Some(Op::RequestPut(put(key, random))) }).collect();
        client.txn(in_keyspace(TxnRequest { success, ..TxnRequest::default() }, keyspace)).await?;
    }
    Ok(())
}

/// A request to this keyspace; `None` leaves it to the address.
fn in_keyspace<T>(message: T, keyspace: Option<&MetadataValue<Ascii>>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(keyspace) = keyspace {
        request.metadata_mut().insert(KEYSPACE_METADATA, keyspace.clone());
    }
    request
}
