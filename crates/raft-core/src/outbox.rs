//! Messages, each held until what it claims is durable.

use crate::message::{AppendReply, Body, Message};
use crate::types::{Term, Ticket};

/// Where messages wait for the disk, and then for the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox {
    /// Free to go.
    messages: Vec<Message>,
    /// Waiting for a ticket. The term is the sender's own, which in a pre-vote is not the message's.
    held: Vec<(Ticket, Term, Message)>,
}

impl Outbox {
    /// Takes `message`, which claims what is durable once `needs` is.
    pub(crate) fn push(&mut self, message: Message, needs: Ticket, durable: Ticket, own_term: Term) {
        if needs <= durable {
            if !merge(self.messages.last_mut(), &message) {
                self.messages.push(message);
            }
            return;
        }
        if let Some((ticket, term, last)) = self.held.last_mut()
            && (*ticket, *term) == (needs, own_term)
            && merge(Some(last), &message)
        {
            return;
        }
        self.held.push((needs, own_term, message));
    }

    /// Everything up to `durable` is durable.
    pub(crate) fn release(&mut self, durable: Ticket) {
        let free = self.held.extract_if(.., |(needs, ..)| *needs <= durable);
        self.messages.extend(free.map(|(.., message)| message));
    }

    /// The term is new: what was held was said in an older one, and is of no use to anybody.
    pub(crate) fn term_changed(&mut self, term: Term) {
        self.held.retain(|(_, own, _)| *own == term);
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        self.held.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Hands over what is free to go, and takes the buffer of the last time back.
    pub(crate) fn take_into(&mut self, messages: &mut Vec<Message>) {
        messages.clear();
        std::mem::swap(&mut self.messages, messages);
    }
}

/// Folds one acknowledgement into the one before it: they are cumulative, so a burst of appends costs one answer.
fn merge(earlier: Option<&mut Message>, message: &Message) -> bool {
    let Some(earlier) = earlier else { return false };
    if (earlier.to, earlier.term, earlier.doubt) != (message.to, message.term, message.doubt) {
        return false;
    }
    match (&mut earlier.body, &message.body) {
        (
            Body::AppendReply(AppendReply::Accepted { match_index: old }),
            Body::AppendReply(AppendReply::Accepted { match_index: new }),
        ) => {
            *old = (*old).max(*new);
            true
        }
        _ => false,
    }
}
