//! New events, read once for all watchers that follow closely.
//!
//! Of each keyspace that is watched one task reads what is new, a page at a time, and puts each watcher's share into the
//! mailbox of its stream. So a write costs what it concerns, not the number of watchers or of streams. A watcher that is
//! behind (it starts in the past, or its client is slow and its mailbox is full) does not follow: its stream reads the
//! history for it, at the pace of its client, until it can follow again. Which of the two it is, and from where on, is decided
//! under one lock, so that nothing is seen twice or left out.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pontoon_proto::mvccpb::Event;
use pontoon_proto::mvccpb::event::EventType;
use tokio::sync::Notify;

use super::events::Page;
use super::interest::Interests;
use super::state::Keyspace;

/// How much of the history is read at once.
const PAGE_BYTES: usize = 512 << 10;
/// What waits for one stream, or one page if that is more; who has more to hear does not follow any longer.
const MAILBOX_BYTES_MAX: usize = 1 << 20;

/// What a watcher wants to hear.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) puts: bool,
    pub(crate) deletions: bool,
    /// With what was there before.
    pub(crate) prev_kv: bool,
}

impl Interest {
    /// This event as the watcher is to see it, if he wants it; its key is one of his.
    pub(crate) fn share(&self, event: &Event) -> Option<Event> {
        let wanted = if event.r#type == EventType::Delete as i32 { self.deletions } else { self.puts };
        wanted.then(|| Event {
            r#type: event.r#type,
            kv: event.kv.clone(),
            prev_kv: event.prev_kv.clone().filter(|_| self.prev_kv),
        })
    }
}

/// A watcher that follows.
#[derive(Debug)]
pub(crate) struct Follower {
    /// Of its stream; never used again there.
    pub(crate) serial: u64,
    pub(crate) interest: Interest,
    /// The first revision that it has not been told of.
    pub(crate) from: i64,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// What waits for one stream.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    held: Mutex<Held>,
    /// Something is in it.
    pub(crate) news: Notify,
}

/// Content of a mailbox.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) deliveries: Vec<Delivery>,
    /// Watchers that do not follow any more, with the first revision that they have not been told of; what was put here for
    /// them before comes first.
    pub(crate) lagging: Vec<(u64, i64)>,
    bytes: usize,
}

/// Events for one watcher, of whole revisions.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) serial: u64,
    pub(crate) events: Vec<Event>,
    /// As of this revision.
    pub(crate) revision: i64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    /// Empties it.
    pub(crate) fn take(&self) -> Held {
        mem::take(&mut *lock(&self.held))
    }
}

/// Those who follow one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// Nobody follows any more.
    deserted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A task reads for them.
    runs: bool,
    /// The first revision that was not handed out; means something while the task runs.
    next: i64,
    interests: Interests<Arc<Follower>>,
    followers: usize,
    /// Of these, those who want to see what was there before.
    with_prev: usize,
    /// Who wants to hear when a revision was handed out.
    waiting: Vec<(i64, Arc<Mailbox>)>,
}

/// What became of the wish to follow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// Hears of everything from its revision on.
    Yes,
    /// The same, and the caller must start [`run`].
    First,
    /// More has been handed out than the watcher knows: it has to read that first.
    Behind,
}

impl Hub {
    /// Lets a watcher follow if it has been told of all that was handed out. `current` is a revision of this keyspace that
    /// was seen before.
    pub(crate) fn follow(&self, follower: &Arc<Follower>, current: i64) -> Followed {
        let mut state = lock(&self.state);
        let next = if state.runs { state.next } else { current + 1 };
        if follower.from < next {
            return Followed::Behind;
        }
        let interest = &follower.interest;
        state.interests.insert(&interest.key, &interest.range_end, Arc::clone(follower));
        state.followers += 1;
        state.with_prev += usize::from(interest.prev_kv);
        state.next = next;
        if mem::replace(&mut state.runs, true) { Followed::Yes } else { Followed::First }
    }

    /// Takes a watcher away, if it follows.
    pub(crate) fn leave(&self, follower: &Arc<Follower>) {
        let mut state = lock(&self.state);
        state.remove(follower);
        if state.followers == 0 {
            self.deserted.notify_one();
        }
    }

    /// The revision up to which the stream of this mailbox has taken all that its followers are to hear, if that is at least
    /// `wanted`; `None` while something waits for it or is still to be read. Then there is news as soon as that is over.
    pub(crate) fn settled(&self, mailbox: &Arc<Mailbox>, wanted: i64) -> Option<i64> {
        let mut state = lock(&self.state);
        if state.runs && state.next <= wanted {
            state.waiting.push((wanted, Arc::clone(mailbox)));
            return None;
        }
        let held = lock(&mailbox.held);
        (state.runs && held.deliveries.is_empty() && held.lagging.is_empty()).then(|| state.next - 1)
    }

    /// What to read next, and whether with what was there before; `None` if nobody follows: the task ends.
    fn wanted(&self) -> Option<(i64, bool)> {
        let mut state = lock(&self.state);
        state.runs = state.followers > 0;
        state.runs.then(|| (state.next, state.with_prev > 0))
    }

    /// Hands a page out that begins at `from`.
    fn hand_out(&self, from: i64, with_prev: bool, page: &Page) {
        let mut state = lock(&self.state);
        if page.compact_revision > from && from <= page.revision {
            // Something may be missing in it. Their streams find out what that means for each of them.
            state.send_off(from);
            return;
        }
        let mut shares: BTreeMap<(usize, u64), Share> = BTreeMap::new();
        for event in &page.events {
            let Some(kv) = &event.kv else { continue };
            state.interests.of_key(&kv.key, |follower| {
                if follower.from > kv.mod_revision {
                    return;
                }
                let Some(event) = follower.interest.share(event) else { return };
                let share = shares.entry((Arc::as_ptr(&follower.mailbox) as usize, follower.serial));
                let share =
                    share.or_insert_with(|| Share { follower: Arc::clone(follower), events: Vec::new() });
                share.events.push(event);
            });
        }
        for mut share in shares.into_values() {
            // Who came while the page was read without what was there before has to read it himself.
            let complete = with_prev || !share.follower.interest.prev_kv;
            if !complete || !share.deliver(page.next - 1) {
                state.remove(&share.follower);
                share.follower.mailbox.leave_behind(share.follower.serial, from);
            }
        }
        state.next = page.next;
        state.waiting.retain(|(wanted, mailbox)| {
            let waits = page.next <= *wanted;
            if !waits {
                mailbox.news.notify_one();
            }
            waits
        });
    }

    /// Nobody follows any more, from this revision on.
    fn send_all_off(&self, from: i64) {
        lock(&self.state).send_off(from);
    }
}

struct Share {
    follower: Arc<Follower>,
    events: Vec<Event>,
}

impl Share {
    /// `false` if there is no room; then nothing was changed.
    fn deliver(&mut self, revision: i64) -> bool {
        let bytes = self.events.iter().map(Page::bytes).sum::<usize>();
        let mut held = lock(&self.follower.mailbox.held);
        if held.bytes > 0 && held.bytes + bytes > MAILBOX_BYTES_MAX {
            return false;
        }
        held.bytes += bytes;
        let events = mem::take(&mut self.events);
        held.deliveries.push(Delivery { serial: self.follower.serial, events, revision });
        drop(held);
        self.follower.mailbox.news.notify_one();
        true
    }
}

impl Mailbox {
    fn leave_behind(&self, serial: u64, next: i64) {
        lock(&self.held).lagging.push((serial, next));
        self.news.notify_one();
    }
}

impl State {
    fn remove(&mut self, follower: &Arc<Follower>) {
        let interest = &follower.interest;
        if self.interests.remove(&interest.key, &interest.range_end, |other| Arc::ptr_eq(other, follower)) {
            self.followers -= 1;
            self.with_prev -= usize::from(interest.prev_kv);
        }
    }

    fn send_off(&mut self, from: i64) {
        for follower in self.interests.drain() {
            // One that starts further on has nothing to read before.
            follower.mailbox.leave_behind(follower.serial, follower.from.max(from));
        }
        (self.followers, self.with_prev) = (0, 0);
        self.waiting.clear();
    }
}

/// Reads for those who follow, until nobody does, or the keyspace is no longer served here.
pub(crate) async fn run(keyspace: Arc<Keyspace>) {
    let (mut revision, mut ended) = (keyspace.subscribe(), keyspace.ended());
    while let Some((from, with_prev)) = keyspace.hub.wanted() {
        if *revision.borrow_and_update() < from {
            tokio::select! {
                changed = revision.changed() => if changed.is_err() { return },
                () = async { drop(ended.wait_for(|ended| *ended).await) } => return,
                () = keyspace.hub.deserted.notified() => {}
            }
            continue;
        }
        let reads = Arc::clone(&keyspace);
        let page = tokio::task::spawn_blocking(move || reads.events(from, PAGE_BYTES, with_prev)).await;
        match page {
            Ok(Ok(page)) => keyspace.hub.hand_out(from, with_prev, &page),
            // Their streams will meet the same failure, and tell it.
            Ok(Err(_)) | Err(_) => keyspace.hub.send_all_off(from),
        }
    }
}

#[cfg(test)]
mod tests {
    use pontoon_proto::mvccpb::KeyValue;

    use super::*;

    fn follower(mailbox: &Arc<Mailbox>, serial: u64, key: &'static str, from: i64) -> Arc<Follower> {
        let interest = Interest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::new(),
            puts: true,
            deletions: true,
            prev_kv: false,
        };
        Arc::new(Follower { serial, interest, from, mailbox: Arc::clone(mailbox) })
    }

    fn put(key: &'static str, revision: i64, value_bytes: usize) -> Event {
        let value = vec![0; value_bytes].into();
        let kv = KeyValue { key: key.into(), value, mod_revision: revision, ..KeyValue::default() };
        Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
    }

    fn page(events: Vec<Event>, next: i64) -> Page {
        Page { events, next, revision: next - 1, compact_revision: 0 }
    }

    fn told(held: &Held) -> Vec<(u64, Vec<i64>)> {
        let revisions =
            |d: &Delivery| d.events.iter().filter_map(|e| Some(e.kv.as_ref()?.mod_revision)).collect();
        held.deliveries.iter().map(|d| (d.serial, revisions(d))).collect()
    }

    #[test]
    fn everybody_gets_his_share_from_where_he_follows() {
        let hub = Hub::default();
        let mailbox = Arc::new(Mailbox::default());
        assert_eq!(hub.settled(&mailbox, 0), None, "nobody reads yet");
        assert_eq!(hub.follow(&follower(&mailbox, 0, "a", 5), 5), Followed::Behind);
        assert_eq!(hub.follow(&follower(&mailbox, 0, "a", 6), 5), Followed::First);
        assert_eq!(hub.follow(&follower(&mailbox, 1, "b", 8), 5), Followed::Yes);
        assert_eq!(hub.wanted(), Some((6, false)));
        assert_eq!(hub.settled(&mailbox, 5), Some(5));
        assert_eq!(hub.settled(&mailbox, 8), None, "not read yet");
        hub.hand_out(6, false, &page(vec![put("a", 6, 1), put("b", 7, 1), put("b", 8, 1)], 9));
        assert_eq!(hub.settled(&mailbox, 0), None, "something waits");
        assert_eq!(told(&mailbox.take()), [(0, vec![6]), (1, vec![8])]);
        assert_eq!(hub.settled(&mailbox, 0), Some(8));
        assert_eq!(hub.follow(&follower(&mailbox, 2, "a", 8), 7), Followed::Behind, "8 was handed out");
    }

    #[test]
    fn who_does_not_empty_his_mailbox_is_left_behind_with_whole_revisions() {
        let hub = Hub::default();
        let (slow, quick) = (Arc::new(Mailbox::default()), Arc::new(Mailbox::default()));
        hub.follow(&follower(&slow, 0, "a", 1), 0);
        hub.follow(&follower(&quick, 0, "a", 1), 0);
        let large = MAILBOX_BYTES_MAX / 2;
        for revision in 1..=3 {
            hub.hand_out(revision, false, &page(vec![put("a", revision, large)], revision + 1));
            assert_eq!(told(&quick.take()), [(0, vec![revision])]);
        }
        let held = slow.take();
        assert_eq!(told(&held), [(0, vec![1])]);
        assert_eq!(held.lagging, [(0, 2)]);
        assert_eq!(hub.wanted(), Some((4, false)), "the other one follows");
        hub.leave(&follower(&slow, 0, "a", 1));
        assert_eq!(hub.wanted(), Some((4, false)), "who does not follow cannot leave");
    }

    #[test]
    fn a_page_that_may_lack_something_is_handed_to_nobody() {
        let hub = Hub::default();
        let mailbox = Arc::new(Mailbox::default());
        hub.follow(&follower(&mailbox, 0, "a", 1), 0);
        hub.follow(&follower(&mailbox, 1, "a", 90), 0);
        hub.hand_out(1, false, &Page { compact_revision: 5, ..page(vec![put("a", 7, 1)], 8) });
        let held = mailbox.take();
        assert!(held.deliveries.is_empty());
        assert_eq!(held.lagging, [(0, 1), (1, 90)]);
        assert_eq!(hub.wanted(), None);
    }
}
