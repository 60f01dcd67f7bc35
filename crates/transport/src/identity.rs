//! Which data directory a process speaks for.
//!
//! A store id says which store a process *means* to be. What it may claim depends on its disk: an empty directory, an
//! older copy or a clone under the same id has forgotten votes and acknowledgements. So hellos carry an [`Identity`], and
//! the host decides, by what it remembers, whom it takes ([`Inbound::meet`](crate::Inbound::meet)). This crate sees to
//! it that no Raft message of a process is delivered before it is admitted too
//! ([`Inbound::admit`](crate::Inbound::admit)), that at most one process of a store is connected,
//! and that a running one is not replaced by a second one.

use pontoon_proto::peer::v1 as pb;

/// This process's data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random, made once with the directory; not 0.
    pub lineage: u64,
    /// How many processes have run on it, this one included. Durable before the transport starts.
    pub start: u64,
    /// The last batch of the log that this process found on its disk.
    pub opened_at: u64,
    /// The log's last record was not whole, so what was said to be durable may be missing: the store's replicas say so
    /// themselves and count for nothing until that is settled.
    pub in_doubt: bool,
}

/// What a process says of its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The directory and the start.
    pub identity: Identity,
    /// Random for each process.
    pub incarnation: u64,
    /// The last batch of its log that is durable.
    pub reached: u64,
}

impl Claim {
    pub(crate) fn from_wire(lineage: Option<pb::Lineage>, incarnation: u64) -> Option<Self> {
        let said = lineage.filter(|l| l.lineage != 0)?;
        let pb::Lineage { lineage, start, opened_at, in_doubt, .. } = said;
        let identity = Identity { lineage, start, opened_at, in_doubt };
        Some(Self { identity, incarnation, reached: said.reached })
    }
}

pub(crate) fn to_wire(identity: Identity, reached: u64) -> pb::Lineage {
    let Identity { lineage, start, opened_at, in_doubt } = identity;
    pb::Lineage { lineage, start, opened_at, reached, in_doubt }
}
