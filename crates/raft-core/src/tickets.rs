//! Which batches of state are on their way to the disk, and what each will prove.

use std::collections::VecDeque;

use crate::types::{LogIndex, Ticket};

/// The tickets in flight.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tickets {
    /// The newest that was handed out.
    issued: Ticket,
    /// The newest that is durable; all older ones are too.
    durable: Ticket,
    /// The newest that carried a hard state.
    hard_state: Ticket,
    /// Handed out and not yet durable, oldest first, with the last index that each proves. A truncation lowers what
    /// the older ones prove: what they wrote above it is void.
    in_flight: VecDeque<(Ticket, Option<LogIndex>)>,
}

impl Tickets {
    /// The ticket that the next batch will carry.
    pub(crate) fn next(&self) -> Ticket {
        Ticket(self.issued.0 + 1)
    }

    pub(crate) fn durable(&self) -> Ticket {
        self.durable
    }

    /// The ticket that carried the newest hard state which was handed out.
    pub(crate) fn hard_state(&self) -> Ticket {
        self.hard_state
    }

    /// The oldest ticket whose durability proves the entries up to `index`.
    pub(crate) fn proving(&self, index: LogIndex) -> Ticket {
        self.in_flight
            .iter()
            .find(|(_, proves)| proves.is_some_and(|last| last >= index))
            .map_or(self.issued, |t| t.0)
    }

    pub(crate) fn issue(&mut self, proves: Option<LogIndex>, hard_state: bool) -> Ticket {
        self.issued = self.next();
        if hard_state {
            self.hard_state = self.issued;
        }
        self.in_flight.push_back((self.issued, proves));
        self.issued
    }

    /// Entries at and after `from` are void: no ticket in flight proves them any more.
    pub(crate) fn truncated(&mut self, from: LogIndex) {
        for (_, proves) in &mut self.in_flight {
            *proves = proves.map(|last| last.min(from.prev()));
        }
    }

    /// The log was replaced: no ticket in flight proves any entry.
    pub(crate) fn replaced(&mut self) {
        for (_, proves) in &mut self.in_flight {
            *proves = None;
        }
    }

    /// This ticket and all older ones are durable. Returns the last index that they prove.
    pub(crate) fn persisted(&mut self, ticket: Ticket) -> Option<LogIndex> {
        assert!(ticket <= self.issued, "ticket {ticket} was never handed out; the newest is {}", self.issued);
        let mut proved = None;
        while self.in_flight.front().is_some_and(|(t, _)| *t <= ticket) {
            if let Some((_, proves)) = self.in_flight.pop_front() {
                proved = proved.max(proves);
            }
        }
        self.durable = self.durable.max(ticket);
        proved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_ticket_covers_the_older() {
        let mut tickets = Tickets::default();
        tickets.issue(Some(LogIndex(3)), true);
        let second = tickets.issue(Some(LogIndex(5)), false);
        tickets.issue(None, true);
        assert_eq!(tickets.persisted(second), Some(LogIndex(5)));
        assert_eq!((tickets.durable(), tickets.hard_state()), (Ticket(2), Ticket(3)));
        assert_eq!(tickets.persisted(Ticket(1)), None);
        assert_eq!(tickets.durable(), Ticket(2));
    }

    #[test]
    fn truncation_voids_what_older_tickets_prove() {
        let mut tickets = Tickets::default();
        let first = tickets.issue(Some(LogIndex(10)), false);
        tickets.truncated(LogIndex(5));
        let second = tickets.issue(Some(LogIndex(7)), false);
        assert_eq!(tickets.proving(LogIndex(4)), first);
        assert_eq!(tickets.proving(LogIndex(6)), second);
        assert_eq!(tickets.persisted(first), Some(LogIndex(4)));
        assert_eq!(tickets.persisted(second), Some(LogIndex(7)));
    }
}
