//! Whether everything that is held is accounted for, and nothing is held for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pontoon_raft_core::types::StoreId;

use crate::class::{Bytes, Class};
use crate::controller::{Controller, Link};
use crate::pools::{Held, Pools};
use crate::stream::Force;
use crate::window::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};

/// An invariant does not hold: a mistake in this crate, or in the way it is driven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Which one, as the crate's documentation numbers them.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

fn demand(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

/// Checks the invariants over all pools and *all* controllers that use them.
///
/// # Errors
/// The first that does not hold.
pub fn check<'a>(
    pools: &Pools,
    controllers: impl IntoIterator<Item = &'a Controller>,
) -> Result<(), Violation> {
    let mut held: BTreeMap<StoreId, Held> = BTreeMap::new();
    let mut groups = BTreeSet::new();
    let mut streams = BTreeSet::new();
    for controller in controllers {
        demand(groups.insert(controller.group), "I8", || format!("two controllers of {}", controller.group))?;
        for (replica, link) in &controller.links {
            let Link::Open(stream) = link else { continue };
            let key = (controller.group, *replica);
            let at = || format!("group {} to {replica}: {stream:?}, next {}", key.0, controller.next);
            streams.insert(key);
            let sum = held.entry(replica.store).or_default();
            let own = stream.held();
            sum.eval += own.eval;
            sum.send += own.send;
            sum.forced += own.forced;
            sum.send.elastic += stream.granted;
            for class in Class::ALL {
                let sent = stream.sent.get(class);
                let grow = sent.iter().zip(sent.iter().skip(1)).all(|(a, b)| a.last < b.last);
                demand(grow, "I3", at)?;
                demand(sent.back().is_none_or(|newest| newest.last < stream.from), "I3", at)?;
                let early = sent.iter().find(|sent| sent.last < stream.initial && sent.eval > 0);
                demand(early.is_none(), "I2", at)?;
                demand(sent.iter().all(|sent| sent.forced <= sent.send), "I11", at)?;
            }
            demand(stream.from <= controller.next, "I4", at)?;
            if controller.is_settled() {
                let waits = pools.waits_to_send(key);
                demand(stream.fresh.is_zero(), "I4", at)?;
                if stream.from == controller.next {
                    let nothing =
                        stream.queued == 0 && stream.granted == 0 && !waits && stream.force.is_none();
                    demand(nothing, "I4", at)?;
                }
                let flushed = stream.force == Some(Force::Flush);
                let at_once = u8::from(waits) + u8::from(stream.granted > 0) + u8::from(flushed);
                demand(at_once <= 1, "I5", at)?;
            }
        }
    }
    demand(pools.unaccounted() == 0, "I1", || format!("{} bytes came back twice", pools.unaccounted()))?;
    for (store, pool) in pools.stores() {
        let mut sum = held.remove(store).unwrap_or_default();
        for (key, bytes) in &pool.grants {
            demand(streams.contains(key), "I9", || format!("a grant for {key:?}, which is closed"))?;
            sum.send += Bytes::of(Class::Elastic, *bytes);
        }
        let found = Held { eval: pool.eval.held, send: pool.send.held, forced: pool.forced };
        demand(found == sum, "I1", || format!("store {store} counts {found:?}, streams hold {sum:?}"))?;
        let window = pool.window.bytes();
        demand((WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&window), "I12", || {
            format!("the window of store {store} is {window} bytes")
        })?;
        for key in pool.queues.iter() {
            demand(streams.contains(&key), "I9", || format!("{key:?} waits, and is closed"))?;
        }
        for class in Class::ALL {
            for group in pool.waiting.get(class).iter() {
                demand(groups.contains(&group), "I10", || {
                    format!("group {group} waits without a leader here")
                })?;
            }
        }
    }
    demand(held.values().all(|held| *held == Held::default()), "I1", || format!("no pool for {held:?}"))
}

/// One line for each follower: what it waits for.
impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} term {} next {}", self.group, self.term, self.next)?;
        for (replica, link) in &self.links {
            write!(f, "; {replica} ")?;
            match link {
                Link::Away => f.write_str("away")?,
                Link::Grace { .. } => f.write_str("in grace")?,
                Link::Uncontrolled => f.write_str("uncontrolled")?,
                Link::Open(stream) => write!(
                    f,
                    "queue [{}, {}), {} bytes sent and not admitted",
                    stream.from,
                    self.next,
                    stream.held().send.total()
                )?,
            }
        }
        Ok(())
    }
}
