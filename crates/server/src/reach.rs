//! Which other stores answer.

use std::collections::BTreeSet;

use pontoon_transport::{Direction, Lane, LinkStatus};

/// Whether the store at the other end answers. Only what this store has dialled is probed: a connection that came in stays open
/// while its process is stopped, and until the kernel gives up if its machine is gone.
pub(crate) fn answers(link: &LinkStatus) -> bool {
    link.connected && link.direction == Direction::Outbound
}

/// The stores that answer on their control lane.
pub(crate) fn reached(links: &[LinkStatus]) -> BTreeSet<u64> {
    links.iter().filter(|link| link.lane == Lane::Control && answers(link)).map(|link| link.store.0).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pontoon_raft_core::types::StoreId;

    use super::*;

    fn link(store: u64, direction: Direction, lane: Lane, connected: bool) -> LinkStatus {
        LinkStatus {
            store: StoreId(store),
            name: String::new(),
            address: String::new(),
            direction,
            lane,
            connected,
            since: Duration::ZERO,
            connected_total: Duration::ZERO,
            attempts: 0,
            successes: 0,
            disconnections: 0,
            backoff: Duration::ZERO,
            probe_interval: Duration::ZERO,
            last_error: None,
            last_error_kind: None,
            queued_messages: 0,
            queued_bytes: 0,
            in_flight_bytes: 0,
            large_bytes: 0,
            waits_for: None,
            unprocessed_bytes: 0,
            credit_bytes: None,
            messages: 0,
            frames: 0,
            bytes: 0,
            cancelled: 0,
            dropped: 0,
            refused_frames: 0,
        }
    }

    /// The third is stopped: what it has dialled stays open.
    #[test]
    fn who_only_has_a_connection_to_here_does_not_answer() {
        let links = [
            link(2, Direction::Outbound, Lane::Control, true),
            link(2, Direction::Inbound, Lane::Control, true),
            link(3, Direction::Outbound, Lane::Control, false),
            link(3, Direction::Inbound, Lane::Control, true),
            link(4, Direction::Outbound, Lane::Log, true),
        ];
        assert_eq!(reached(&links), BTreeSet::from([2]));
        assert!(answers(&links[4]) && !answers(&links[3]));
    }
}
