//! What a store holds in memory, by purpose.

use pontoon_node::Node;
use pontoon_proto::v1::MemoryFigure;

/// Every figure, in a stable order; the unit is the last word of the name.
pub(super) fn figures(node: &Node) -> Vec<MemoryFigure> {
    let log = node.log().stats();
    let load = node.load();
    let links = node.transport().links();
    let sum = |f: fn(&pontoon_transport::LinkStatus) -> usize| links.iter().map(f).sum::<usize>() as u64;
    [
        ("resident_bytes", resident_bytes()),
        ("groups_count", node.groups().len() as u64),
        ("log_cached_bytes", log.cached_bytes),
        ("log_pending_bytes", log.pending_bytes),
        ("waiting_proposals_count", load.proposals as u64),
        ("waiting_proposals_bytes", load.proposal_bytes as u64),
        ("waiting_reads_count", load.reads as u64),
        ("peer_queued_messages_count", sum(|l| l.queued_messages)),
        ("peer_queued_bytes", sum(|l| l.queued_bytes)),
        ("peer_received_waiting_bytes", node.transport().received_bytes_waiting()),
    ]
    .into_iter()
    .map(|(name, value)| MemoryFigure { name: name.to_owned(), value })
    .collect()
}

/// The process's resident size as the kernel tells it; 0 where it does not.
pub(crate) fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
