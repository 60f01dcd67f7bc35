//! Which store to try next.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use tonic::transport::Endpoint;

/// The list of stores a session goes through: round-robin, unless a store said who leads.
#[derive(Debug)]
pub(crate) struct Remotes {
    endpoints: Vec<Endpoint>,
    /// The next of the round.
    next: usize,
    /// Who is said to lead; used once.
    hint: Option<usize>,
    /// The latest choice followed a hint. The one after it never does, so that two stores that point at each other
    /// cannot hide a third.
    followed: bool,
    /// Which remote a member id answered at.
    members: HashMap<u64, usize>,
}

impl Remotes {
    /// Takes at least one endpoint.
    pub(crate) fn new(mut endpoints: Vec<Endpoint>, shuffle: bool) -> Self {
        if shuffle {
            // Each new state has other keys, so the hash of anything is a random number.
            let random = RandomState::new();
            for i in (1..endpoints.len()).rev() {
                let j = usize::try_from(random.hash_one(i) % (i as u64 + 1)).expect("it is at most i");
                endpoints.swap(i, j);
            }
        }
        Self { endpoints, next: 0, hint: None, followed: false, members: HashMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The remote for the next attempt.
    pub(crate) fn choose(&mut self) -> (usize, Endpoint) {
        let remote = match self.hint.take().filter(|_| !self.followed) {
            Some(hint) => {
                self.followed = true;
                hint
            }
            None => {
                self.followed = false;
                let next = self.next;
                self.next = (next + 1) % self.endpoints.len();
                next
            }
        };
        (remote, self.endpoints[remote].clone())
    }

    /// A member answered at a remote.
    pub(crate) fn learn(&mut self, remote: usize, member: u64) {
        // Not more members than remotes: a store that makes up a new id for each answer fills no memory.
        self.members.retain(|_, at| *at != remote);
        self.members.insert(member, remote);
    }

    /// A remote that does not lead says who does; ignored when that member has not been met.
    pub(crate) fn suggest(&mut self, from: usize, leader: u64) {
        self.hint = self.members.get(&leader).copied().filter(|&remote| remote != from);
    }

    /// A remote suits; the next hint may be followed.
    pub(crate) fn settle(&mut self) {
        self.hint = None;
        self.followed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remotes(n: u16) -> Remotes {
        let endpoint = |port| Endpoint::from_shared(format!("http://h:{port}")).unwrap();
        Remotes::new((1..=n).map(endpoint).collect(), false)
    }

    fn choices(remotes: &mut Remotes, n: usize) -> Vec<usize> {
        (0..n).map(|_| remotes.choose().0).collect()
    }

    #[test]
    fn goes_round() {
        assert_eq!(choices(&mut remotes(3), 5), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn follows_a_hint_once_and_not_twice_in_a_row() {
        let mut remotes = remotes(3);
        remotes.learn(0, 100);
        remotes.learn(2, 102);
        remotes.suggest(0, 101);
        assert_eq!(choices(&mut remotes, 1), [0], "an unknown member is no hint");
        remotes.suggest(0, 102);
        assert_eq!(choices(&mut remotes, 1), [2]);
        remotes.suggest(2, 100);
        assert_eq!(choices(&mut remotes, 1), [1], "two that point at each other do not hide the third");
        remotes.suggest(2, 102);
        assert_eq!(choices(&mut remotes, 2), [2, 0], "nobody points at itself");
        remotes.suggest(1, 102);
        remotes.settle();
        assert_eq!(choices(&mut remotes, 1), [1]);
    }

    #[test]
    fn remembers_no_more_members_than_remotes() {
        let mut remotes = remotes(2);
        for member in 0..1000 {
            remotes.learn(0, member);
        }
        assert_eq!(remotes.members.len(), 1);
    }

    #[test]
    fn shuffling_loses_none() {
        let endpoint = |port| Endpoint::from_shared(format!("http://h:{port}")).unwrap();
        let shuffled = Remotes::new((1..=50).map(endpoint).collect(), true);
        let mut ports: Vec<_> = shuffled.endpoints.iter().map(|e| e.uri().port_u16().unwrap()).collect();
        ports.sort_unstable();
        assert_eq!(ports, (1..=50).collect::<Vec<_>>());
    }
}
