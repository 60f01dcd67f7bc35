//! What is replicated of a keyspace beside its keys and leases: alarms, users and roles, and how far a restore has come.
//!
//! It is small and bounded, so it is kept in memory whole; readers get it as a picture that does not change. In the
//! engine each alarm, user and role is a record of the table `control`:
//!
//! | key | value |
//! |---|---|
//! | slot, `a`, kind, store | one byte: 1 if the quota raised the alarm, 0 if a client did |
//! | slot, `e` | whether users are asked for, the auth revision, the secret of tokens |
//! | slot, `u`, name | `authpb.User` |
//! | slot, `r`, name | `authpb.Role` |
//! | slot, `i` | [`Restore`] |

use std::collections::BTreeMap;

use fjall::Readable;
use pontoon_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction};

use crate::auth::{AuthChange, AuthRecord, AuthStore};
use crate::engine::Tables;
use crate::error::{EtcdError, StoreError};
use crate::mvcc::keys;
use crate::mvcc::records::Revision;

const KIND_ALARM: u8 = b'a';
const KIND_AUTH: u8 = b'e';
const KIND_USER: u8 = b'u';
const KIND_ROLE: u8 = b'r';
const KIND_RESTORE: u8 = b'i';

/// What clients can raise at most: more kinds and members than there are say nothing. Part of the replicated state's
/// rules.
const ALARMS_MAX: usize = 64;

/// A restore that is not finished: until it is, the keyspace is nobody's to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restore {
    /// Pieces that are in.
    pub(crate) pieces: u64,
    /// The last change that is in.
    pub(crate) last: Revision,
    /// The revision that the keyspace is going to have.
    pub(crate) revision: i64,
    /// The revision that it is compacted to; -1 if it never was.
    pub(crate) compact_revision: i64,
    /// Tells one attempt from another, whose pieces must not be mixed.
    pub(crate) attempt: u64,
    /// Nothing more is taken: somebody is about to delete the keyspace.
    pub(crate) given_up: bool,
}

const RESTORE_BYTES: usize = 8 + 8 + 4 + 8 + 8 + 8 + 1;

impl Restore {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(RESTORE_BYTES);
        out.extend_from_slice(&self.pieces.to_le_bytes());
        out.extend_from_slice(&self.last.main.to_le_bytes());
        out.extend_from_slice(&self.last.sub.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.compact_revision.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.push(self.given_up.into());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (pieces, rest) = bytes.split_first_chunk()?;
        let (main, rest) = rest.split_first_chunk()?;
        let (sub, rest) = rest.split_first_chunk()?;
        let (revision, rest) = rest.split_first_chunk()?;
        let (compact_revision, rest) = rest.split_first_chunk()?;
        let (attempt, given_up) = match rest {
            // As it was written before attempts had numbers.
            [] => ([0; 8], false),
            rest => {
                let (attempt, rest) = rest.split_first_chunk()?;
                match rest {
                    [given_up @ (0 | 1)] => (*attempt, *given_up == 1),
                    _ => return None,
                }
            }
        };
        Some(Self {
            pieces: u64::from_le_bytes(*pieces),
            last: Revision { main: i64::from_le_bytes(*main), sub: u32::from_le_bytes(*sub) },
            revision: i64::from_le_bytes(*revision),
            compact_revision: i64::from_le_bytes(*compact_revision),
            attempt: u64::from_le_bytes(attempt),
            given_up,
        })
    }
}

/// Who raised an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Raised {
    /// A client, who takes it back as well.
    ByClient,
    /// The quota: it goes by itself when there is room again.
    ByQuota,
}

/// A record as it is written: its key without the slot, and its value; `None` to remove it.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

/// The state, as of some entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Control {
    /// By kind and store.
    alarms: BTreeMap<(i32, u64), Raised>,
    pub(crate) auth: AuthStore,
    restore: Option<Restore>,
}

fn alarm_key((alarm, member): (i32, u64)) -> Vec<u8> {
    let mut key = vec![KIND_ALARM];
    key.extend_from_slice(&alarm.to_be_bytes());
    key.extend_from_slice(&member.to_be_bytes());
    key
}

fn auth_key(record: &AuthRecord) -> Vec<u8> {
    let (kind, name) = match record {
        AuthRecord::State => (KIND_AUTH, ""),
        AuthRecord::User(name) => (KIND_USER, name.as_str()),
        AuthRecord::Role(name) => (KIND_ROLE, name.as_str()),
    };
    let mut key = vec![kind];
    key.extend_from_slice(name.as_bytes());
    key
}

impl Control {
    /// Reads the records of a slot.
    pub(crate) fn open(reader: &impl Readable, tables: &Tables, slot: u64) -> Result<Self, StoreError> {
        let mut control = Self::default();
        for guard in reader.prefix(&tables.control, keys::slot_prefix(slot)) {
            let (key, value) = guard.into_inner()?;
            control.load(keys::after_slot(&key), &value)?;
        }
        Ok(control)
    }

    /// Takes one record over.
    pub(crate) fn load(&mut self, suffix: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let damaged = || StoreError::damaged("control: a record of an unknown kind or length");
        let (&kind, name) = suffix.split_first().ok_or_else(damaged)?;
        let text = || std::str::from_utf8(name).map(str::to_owned).map_err(|_| damaged());
        match kind {
            KIND_ALARM => {
                let (alarm, member) = name.split_first_chunk().ok_or_else(damaged)?;
                let member = u64::from_be_bytes(member.try_into().map_err(|_| damaged())?);
                let raised = match value {
                    [0] => Raised::ByClient,
                    [1] => Raised::ByQuota,
                    _ => return Err(damaged()),
                };
                self.alarms.insert((i32::from_be_bytes(*alarm), member), raised);
            }
            KIND_AUTH if name.is_empty() => self.auth.load(&AuthRecord::State, value)?,
            KIND_USER => self.auth.load(&AuthRecord::User(text()?), value)?,
            KIND_ROLE => self.auth.load(&AuthRecord::Role(text()?), value)?,
            KIND_RESTORE if name.is_empty() => {
                self.restore = Some(Restore::decode(value).ok_or_else(damaged)?);
            }
            _ => return Err(damaged()),
        }
        Ok(())
    }

    /// Whether an alarm of that kind is raised, by whomever.
    pub(crate) fn has_alarm(&self, alarm: AlarmType) -> bool {
        let kind = i32::from(alarm);
        self.alarms.range((kind, 0)..=(kind, u64::MAX)).next().is_some()
    }

    /// Whether the quota raised an alarm, which is to go when there is room.
    pub(crate) fn is_over_quota(&self) -> bool {
        let nospace = i32::from(AlarmType::Nospace);
        self.alarms.iter().any(|((kind, _), raised)| *kind == nospace && *raised == Raised::ByQuota)
    }

    /// The alarms of a kind; of every kind for `None`.
    pub(crate) fn alarms(&self, kind: i32) -> Vec<AlarmMember> {
        let all = kind == i32::from(AlarmType::None);
        let alarms = self.alarms.keys().filter(|(alarm, _)| all || *alarm == kind);
        alarms.map(|&(alarm, member_id)| AlarmMember { member_id, alarm }).collect()
    }

    /// The restore that is under way.
    pub(crate) fn restore(&self) -> Option<Restore> {
        self.restore
    }

    /// Notes how far a restore has come; `None`: it is over.
    pub(crate) fn set_restore(&mut self, restore: Option<Restore>) -> Write {
        self.restore = restore;
        (vec![KIND_RESTORE], restore.map(|r| r.encode()))
    }

    /// Raises an alarm or takes it back; says which it was, as etcd does.
    pub(crate) fn change_alarm(
        &mut self,
        r: &AlarmRequest,
    ) -> Result<(Option<AlarmMember>, Vec<Write>), EtcdError> {
        let key = (r.alarm, r.member_id);
        let member = AlarmMember { member_id: r.member_id, alarm: r.alarm };
        match AlarmAction::try_from(r.action) {
            Ok(AlarmAction::Activate) => {
                if self.alarms.contains_key(&key) {
                    return Ok((Some(member), Vec::new()));
                }
                if self.alarms.len() >= ALARMS_MAX {
                    return Err(EtcdError::TooManyAlarms);
                }
                self.alarms.insert(key, Raised::ByClient);
                Ok((Some(member), vec![(alarm_key(key), Some(vec![0]))]))
            }
            Ok(AlarmAction::Deactivate) => match self.alarms.remove(&key) {
                Some(_) => Ok((Some(member), vec![(alarm_key(key), None)])),
                None => Ok((None, Vec::new())),
            },
            _ => Ok((None, Vec::new())),
        }
    }

    /// The quota is exceeded, or there is room again.
    pub(crate) fn change_quota(&mut self, over: bool, member: u64) -> Vec<Write> {
        let nospace = i32::from(AlarmType::Nospace);
        if over {
            if self.has_alarm(AlarmType::Nospace) || self.alarms.len() >= ALARMS_MAX {
                return Vec::new();
            }
            self.alarms.insert((nospace, member), Raised::ByQuota);
            return vec![(alarm_key((nospace, member)), Some(vec![1]))];
        }
        let gone = |(&(kind, member), raised): (&(i32, u64), &Raised)| {
            (kind == nospace && *raised == Raised::ByQuota).then_some((kind, member))
        };
        let gone: Vec<_> = self.alarms.iter().filter_map(gone).collect();
        gone.into_iter()
            .map(|key| {
                self.alarms.remove(&key);
                (alarm_key(key), None)
            })
            .collect()
    }

    /// Changes users or roles.
    pub(crate) fn change_auth(&mut self, change: &AuthChange) -> Result<Vec<Write>, EtcdError> {
        let touched = self.auth.change(change)?;
        Ok(touched.iter().map(|record| (auth_key(record), self.auth.encode(record))).collect())
    }
}

/// Whether a record of another keyspace belongs into one that is restored from it: alarms are about the stores of then.
pub(crate) fn is_restored(suffix: &[u8]) -> bool {
    matches!(suffix.first(), Some(&(KIND_AUTH | KIND_USER | KIND_ROLE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(action: AlarmAction, alarm: AlarmType, member_id: u64) -> AlarmRequest {
        AlarmRequest { action: action.into(), member_id, alarm: alarm.into() }
    }

    #[test]
    fn alarms_are_raised_once_and_taken_back() {
        let mut control = Control::default();
        let raise = request(AlarmAction::Activate, AlarmType::Nospace, 7);
        let member = Some(AlarmMember { member_id: 7, alarm: AlarmType::Nospace.into() });
        let (raised, writes) = control.change_alarm(&raise).unwrap();
        assert_eq!((raised, writes.len()), (member, 1));
        assert_eq!(control.change_alarm(&raise).unwrap(), (member, vec![]));
        assert!(control.has_alarm(AlarmType::Nospace) && !control.has_alarm(AlarmType::Corrupt));
        assert_eq!(control.alarms(0).len(), 1);
        assert_eq!(control.alarms(AlarmType::Corrupt.into()), []);
        // What a client has raised does not go by itself.
        assert_eq!(control.change_quota(true, 8), vec![]);
        assert!(!control.is_over_quota());
        assert_eq!(control.change_quota(false, 8), vec![]);
        let lower = request(AlarmAction::Deactivate, AlarmType::Nospace, 7);
        let (lowered, writes) = control.change_alarm(&lower).unwrap();
        assert_eq!((lowered, writes), (member, vec![(alarm_key((1, 7)), None)]));
        assert_eq!(control.change_alarm(&lower).unwrap(), (None, vec![]));
    }

    #[test]
    fn the_quotas_alarm_goes_with_its_reason() {
        let mut control = Control::default();
        let writes = control.change_quota(true, 8);
        assert_eq!(writes, vec![(alarm_key((1, 8)), Some(vec![1]))]);
        assert!(control.is_over_quota());
        let mut again = Control::default();
        again.load(&writes[0].0, &[1]).unwrap();
        assert!(again.is_over_quota());
        assert_eq!(control.change_quota(false, 9), vec![(alarm_key((1, 8)), None)]);
        assert!(!control.has_alarm(AlarmType::Nospace));
    }

    #[test]
    fn alarms_are_bounded() {
        let mut control = Control::default();
        for member in 0..ALARMS_MAX as u64 {
            control.change_alarm(&request(AlarmAction::Activate, AlarmType::Corrupt, member)).unwrap();
        }
        let more = request(AlarmAction::Activate, AlarmType::Corrupt, 99);
        assert_eq!(control.change_alarm(&more), Err(EtcdError::TooManyAlarms));
    }

    #[test]
    fn damaged_records_are_told() {
        let mut control = Control::default();
        let last = Revision { main: 4, sub: 5 };
        let restore =
            Restore { pieces: 3, last, revision: 9, compact_revision: -1, attempt: 7, given_up: true };
        let (key, value) = control.set_restore(Some(restore));
        let value = value.unwrap();
        let mut again = Control::default();
        again.load(&key, &value).unwrap();
        assert_eq!(again.restore(), Some(restore));
        // As it was written before attempts had numbers.
        again.load(&key, &value[..36]).unwrap();
        assert_eq!(again.restore(), Some(Restore { attempt: 0, given_up: false, ..restore }));
        for length in (0..value.len()).filter(|length| *length != 36) {
            assert!(again.load(&key, &value[..length]).is_err(), "{length} bytes");
        }
        for (key, value) in [
            (&b""[..], &b""[..]),
            (b"x", b""),
            (b"a1", b"\x01"),
            (b"i", b"short"),
            (b"e", b""),
            (b"u\xff", b""),
        ] {
            assert!(control.load(key, value).is_err(), "{key:?}");
        }
    }
}
