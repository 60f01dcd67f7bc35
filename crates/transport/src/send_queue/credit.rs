//! How far the peer lets us go on one stream.

/// Offsets are sums of charges ([`charge`](crate::receive_budget::charge)).
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// The peer lets us send up to this offset of the stream; `None`: without bounds.
    granted: Option<u64>,
    /// What was sent on this stream.
    charged: u64,
    /// The next message ends there, beyond what is granted: nothing is sent before there is more.
    starved: Option<u64>,
    /// The peer is to be told of `starved`.
    wants: Option<u64>,
}

impl Credit {
    /// Of a new stream.
    pub(super) fn new(granted: Option<u64>) -> Self {
        Self { granted, ..Self::default() }
    }

    /// What may be sent yet; `None`: anything.
    pub(super) fn left(&self) -> Option<u64> {
        self.granted.map(|granted| granted.saturating_sub(self.charged))
    }

    pub(super) fn starves(&self) -> bool {
        self.starved.is_some()
    }

    /// Whether the peer is to be told what is missing.
    pub(super) fn wants(&self) -> bool {
        self.wants.is_some()
    }

    /// What the peer is to be told, once.
    pub(super) fn take_wants(&mut self) -> Option<u64> {
        self.wants.take()
    }

    /// The peer lets us send up to this offset. Offsets only grow.
    pub(super) fn granted(&mut self, offset: u64) {
        let Some(granted) = &mut self.granted else { return };
        *granted = offset.max(*granted);
        let granted = *granted;
        self.starved.take_if(|starved| *starved <= granted);
    }

    /// A frame held so much, and the next message, of charge `starved`, found no credit; with it, so much `beyond` is asked for.
    pub(super) fn sent(&mut self, charge: u64, starved: Option<u64>, beyond: u64) {
        self.charged += charge;
        let Some(needed) = starved.map(|charge| self.charged.saturating_add(charge)) else { return };
        // It may have come while the frame was built.
        if self.granted.is_some_and(|granted| granted < needed) {
            (self.starved, self.wants) = (Some(needed), Some(needed.saturating_add(beyond)));
        }
    }
}
