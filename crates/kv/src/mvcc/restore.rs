//! Filling a new keyspace from the saved state of another one.
//!
//! The pieces go through the log like any command, so that every store has the same, and a restart or an image in the
//! midst of it loses nothing. Until the last piece is in, the keyspace refuses everybody (`Control::restore`): it is
//! never seen half there. Who wants to try again after a restore that nobody goes on with gives it up first, by a step
//! of its own: after that it cannot be finished any more, and the keyspace can be deleted. What is not taken over: which writes are remembered, whose names mean another log, and alarms.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{EtcdError, Fault};
use crate::mvcc::control::{Control, Restore, is_restored};
use crate::mvcc::frames::{self, TAG_CONTROL, TAG_LEASE, TAG_VERSION};
use crate::mvcc::records::Revision;
use crate::mvcc::writer::{self, Writer};

/// One step of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// The first one; only a keyspace that nobody has written to takes it.
    Begin {
        /// The revision that the keyspace is going to have.
        revision: i64,
        /// What it is compacted to; -1 if it never was.
        compact_revision: i64,
        /// Drawn anew for each attempt: two that go on at the same time are told apart by it.
        attempt: u64,
    },
    /// Some records.
    Piece {
        /// Counts from 0. One that is in already is done.
        number: u64,
        /// Whole frames of an image.
        frames: Bytes,
    },
    /// The last one: the keyspace is there.
    End {
        /// How many pieces there were.
        pieces: u64,
    },
    /// Nobody goes on with it: nothing more is taken.
    GiveUp {
        /// The attempt that is meant.
        attempt: u64,
        /// The pieces that were in when somebody looked: one that has gone on since is not given up.
        pieces: u64,
    },
}

impl RestoreStep {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Begin { revision, compact_revision, attempt } => {
                out.put_u8(1);
                out.put_i64_le(*revision);
                out.put_i64_le(*compact_revision);
                out.put_u64_le(*attempt);
            }
            Self::Piece { number, frames } => {
                out.put_u8(2);
                out.put_u64_le(*number);
                out.put_slice(frames);
            }
            Self::End { pieces } => {
                out.put_u8(3);
                out.put_u64_le(*pieces);
            }
            Self::GiveUp { attempt, pieces } => {
                out.put_u8(4);
                out.put_u64_le(*attempt);
                out.put_u64_le(*pieces);
            }
        }
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, EtcdError> {
        if bytes.len() < 9 {
            return Err(EtcdError::UnknownCommand);
        }
        match bytes.get_u8() {
            // In older logs without the attempt's number.
            1 if matches!(bytes.len(), 16 | 24) => {
                let (revision, compact_revision) = (bytes.get_i64_le(), bytes.get_i64_le());
                let attempt = if bytes.is_empty() { 0 } else { bytes.get_u64_le() };
                Ok(Self::Begin { revision, compact_revision, attempt })
            }
            2 => Ok(Self::Piece { number: bytes.get_u64_le(), frames: bytes }),
            3 if bytes.len() == 8 => Ok(Self::End { pieces: bytes.get_u64_le() }),
            4 if bytes.len() == 16 => {
                Ok(Self::GiveUp { attempt: bytes.get_u64_le(), pieces: bytes.get_u64_le() })
            }
            _ => Err(EtcdError::UnknownCommand),
        }
    }
}

/// Carries a step out; `true` when the keyspace is there.
pub(crate) fn execute(w: &mut Writer, step: &RestoreStep) -> Result<bool, Fault> {
    let under_way = w.control.restore();
    match (step, under_way) {
        (RestoreStep::GiveUp { attempt, pieces }, Some(now))
            if now.attempt == *attempt && now.pieces == *pieces =>
        {
            w.note_restore(Some(Restore { given_up: true, ..now }));
            Ok(false)
        }
        (RestoreStep::GiveUp { .. }, _) => Err(EtcdError::RestoreGoesOn.into()),
        (RestoreStep::Piece { .. } | RestoreStep::End { .. }, Some(now)) if now.given_up => {
            Err(EtcdError::RestoreGivenUp.into())
        }
        (RestoreStep::Begin { revision, compact_revision, attempt }, under_way) => {
            let begun = Restore {
                pieces: 0,
                last: Revision::default(),
                revision: *revision,
                compact_revision: *compact_revision,
                attempt: *attempt,
                given_up: false,
            };
            if under_way == Some(begun) {
                return Ok(false);
            }
            let auth = &w.control.auth;
            let is_new = w.meta.revision == 1
                && w.meta.compact_revision < 0
                && w.lease_count() == 0
                && !auth.is_enabled()
                && auth.revision() == 1;
            if under_way.is_some() || !is_new || *revision < 1 || compact_revision > revision {
                return Err(EtcdError::NotEmpty.into());
            }
            w.meta.revision = *revision;
            w.note_restore(Some(begun));
            Ok(false)
        }
        (RestoreStep::Piece { number, .. }, Some(now)) if *number < now.pieces => Ok(false),
        (RestoreStep::Piece { number, frames }, Some(mut now)) if *number == now.pieces => {
            fill(w, frames, &mut now)?;
            now.pieces += 1;
            w.note_restore(Some(now));
            w.commit_soon = true;
            Ok(false)
        }
        (RestoreStep::End { pieces }, Some(now)) if *pieces == now.pieces => {
            w.meta.compact_revision = now.compact_revision;
            w.note_restore(None);
            Ok(true)
        }
        _ => Err(EtcdError::RestorePiece.into()),
    }
}

fn fill(w: &mut Writer, frames: &Bytes, now: &mut Restore) -> Result<(), Fault> {
    let out_of_order = |_| Fault::Request(EtcdError::RestorePiece);
    // All of it is judged before any of it is written.
    let mut buffer = BytesMut::from(&frames[..]);
    let mut whole = Vec::new();
    let mut last = now.last;
    let mut control = Control::default();
    while !buffer.is_empty() {
        let frame = frames::take_frame(&mut buffer).map_err(out_of_order)?.ok_or(EtcdError::RestorePiece)?;
        match frame.tag {
            TAG_VERSION => {
                frames::check_version(frame.key(), frame.value(), &mut last, now.revision)
                    .map_err(out_of_order)?;
            }
            TAG_LEASE if writer::is_lease_record(frame.key(), frame.value()) => {}
            TAG_CONTROL if is_restored(frame.key()) => {
                control.load(frame.key(), frame.value()).map_err(|_| EtcdError::RestorePiece)?;
            }
            _ => return Err(EtcdError::RestorePiece.into()),
        }
        whole.push(frame);
    }
    for frame in whole {
        match frame.tag {
            TAG_VERSION => {
                let version = frames::check_version(frame.key(), frame.value(), &mut now.last, now.revision)
                    .map_err(out_of_order)?;
                w.restore_version(now.last, &version, frame.value());
            }
            TAG_LEASE => w.restore_lease(frame.key(), frame.value()),
            _ => w.restore_control(frame.key(), frame.value())?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "restore_test.rs"]
mod tests;
