//! Flow control of one store in `status`: the tokens for each destination, and who waits for them.

use pontoon_proto::v1::{FlowControl, FlowPools};
use serde::Serialize;

use super::super::output::{Hex, table};

/// Flow control as programs see it.
#[derive(Serialize)]
pub(super) struct FlowDocument {
    mode: String,
    regular_limit_bytes: u64,
    elastic_limit_bytes: u64,
    forced_limit_bytes: u64,
    unaccounted_bytes: u64,
    elastic_bytes_per_second: u64,
    stores: Vec<PoolsDocument>,
}

/// The tokens for one store.
#[derive(Serialize)]
struct PoolsDocument {
    store: Hex,
    eval_regular_bytes: i64,
    eval_elastic_bytes: i64,
    send_regular_bytes: i64,
    send_elastic_bytes: i64,
    forced_bytes: u64,
    waiting_groups_regular: u64,
    waiting_groups_elastic: u64,
    waiting_queues: u64,
    window_bytes: u64,
}

impl From<FlowControl> for FlowDocument {
    fn from(flow: FlowControl) -> Self {
        Self {
            mode: flow.mode,
            regular_limit_bytes: flow.regular_limit_bytes,
            elastic_limit_bytes: flow.elastic_limit_bytes,
            forced_limit_bytes: flow.forced_limit_bytes,
            unaccounted_bytes: flow.unaccounted_bytes,
            elastic_bytes_per_second: flow.elastic_bytes_per_second,
            stores: flow.stores.into_iter().map(PoolsDocument::from).collect(),
        }
    }
}

impl From<FlowPools> for PoolsDocument {
    fn from(pools: FlowPools) -> Self {
        Self {
            store: Hex(pools.store),
            eval_regular_bytes: pools.eval_regular_bytes,
            eval_elastic_bytes: pools.eval_elastic_bytes,
            send_regular_bytes: pools.send_regular_bytes,
            send_elastic_bytes: pools.send_elastic_bytes,
            forced_bytes: pools.forced_bytes,
            waiting_groups_regular: pools.waiting_groups_regular,
            waiting_groups_elastic: pools.waiting_groups_elastic,
            waiting_queues: pools.waiting_queues,
            window_bytes: pools.window_bytes,
        }
    }
}

impl FlowDocument {
    /// For people: a line of limits, then the pools.
    pub(super) fn table(&self, name_of: impl Fn(Hex) -> String) -> String {
        let kib = |bytes: i64| (bytes / 1024).to_string();
        let pools = table(
            &[
                "tokens for",
                "begin KiB>",
                "elastic>",
                "send KiB>",
                "elastic>",
                "forced>",
                "waiting>",
                "elastic>",
                "queues>",
                "window KiB>",
            ],
            self.stores.iter().map(|pools| {
                [
                    name_of(pools.store),
                    kib(pools.eval_regular_bytes),
                    kib(pools.eval_elastic_bytes),
                    kib(pools.send_regular_bytes),
                    kib(pools.send_elastic_bytes),
                    (pools.forced_bytes / 1024).to_string(),
                    pools.waiting_groups_regular.to_string(),
                    pools.waiting_groups_elastic.to_string(),
                    pools.waiting_queues.to_string(),
                    (pools.window_bytes / 1024).to_string(),
                ]
            }),
        );
        let [regular, elastic, pace] =
            [self.regular_limit_bytes, self.elastic_limit_bytes, self.elastic_bytes_per_second]
                .map(|bytes| bytes / 1024);
        format!(
            "flow control: {}, {regular} KiB regular, {elastic} KiB elastic at {pace} KiB/s\n{pools}",
            self.mode
        )
    }
}

#[cfg(test)]
pub(super) fn example() -> (FlowControl, serde_json::Value) {
    let flow = FlowControl {
        mode: "all".into(),
        regular_limit_bytes: 16 << 20,
        elastic_limit_bytes: 8 << 20,
        forced_limit_bytes: 32 << 20,
        unaccounted_bytes: 0,
        elastic_bytes_per_second: 4 << 20,
        stores: vec![FlowPools {
            store: 2,
            eval_regular_bytes: 100,
            eval_elastic_bytes: -100,
            send_regular_bytes: 200,
            send_elastic_bytes: -200,
            forced_bytes: 3,
            waiting_groups_regular: 4,
            waiting_groups_elastic: 5,
            waiting_queues: 6,
            window_bytes: 7,
        }],
    };
    let json = serde_json::json!({
        "mode": "all", "regular_limit_bytes": 16_777_216, "elastic_limit_bytes": 8_388_608,
        "forced_limit_bytes": 33_554_432, "unaccounted_bytes": 0,
        "elastic_bytes_per_second": 4_194_304,
        "stores": [{
            "store": "0000000000000002", "eval_regular_bytes": 100, "eval_elastic_bytes": -100,
            "send_regular_bytes": 200, "send_elastic_bytes": -200, "forced_bytes": 3,
            "waiting_groups_regular": 4, "waiting_groups_elastic": 5, "waiting_queues": 6, "window_bytes": 7
        }]
    });
    (flow, json)
}
