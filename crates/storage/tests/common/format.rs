//! The bytes of a data directory, written a second time from `docs/src/journal-format.md`: to make directories that the
//! store itself would never write, and to notice when the two part.

/// The smallest segment.
pub(crate) const SEGMENT_BYTES: usize = 16 << 10;
const RECORDS_AT: usize = 4096;

pub(crate) fn sealed(inside: &[u8]) -> Vec<u8> {
    let mut out = crc32c::crc32c(inside).to_le_bytes().to_vec();
    out.extend_from_slice(inside);
    out
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

pub(crate) fn header(format: u32, cluster: u64, store: u64) -> Vec<u8> {
    let mut out = b"PTNHEAD\0".to_vec();
    out.extend(format.to_le_bytes());
    out.extend(cluster.to_le_bytes());
    out.extend(store.to_le_bytes());
    for words in ["name", "127.0.0.1:1", "127.0.0.1:2"] {
        text(&mut out, words.as_bytes());
    }
    sealed(&out)
}

/// What `MARKER` says.
#[derive(Clone, Debug)]
pub(crate) struct Marker {
    pub(crate) format: u32,
    pub(crate) journal: u64,
    pub(crate) start_segment: u64,
    pub(crate) start_batch: u64,
    pub(crate) checkpoint: u64,
    pub(crate) reached: u64,
    pub(crate) clean: bool,
    pub(crate) doubt: bool,
    pub(crate) cold_generation: u64,
}

impl Marker {
    pub(crate) fn new(journal: u64) -> Self {
        Self {
            format: 2,
            journal,
            start_segment: 1,
            start_batch: 1,
            checkpoint: 0,
            reached: 0,
            clean: false,
            doubt: false,
            cold_generation: 0,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"PTNMARK\0".to_vec();
        out.extend(self.format.to_le_bytes());
        for n in [self.journal, self.start_segment, self.start_batch, self.checkpoint, self.reached] {
            out.extend(n.to_le_bytes());
        }
        out.extend([u8::from(self.clean), u8::from(self.doubt)]);
        if self.format >= 2 {
            out.extend(self.cold_generation.to_le_bytes());
        }
        sealed(&out)
    }
}

/// A record, padded to a multiple of eight. `body_len` is what it claims.
pub(crate) fn record_claiming(segment: u64, first_batch: u64, body: &[u8], body_len: u32) -> Vec<u8> {
    let mut out = b"PTJ1".to_vec();
    out.extend(body_len.to_le_bytes());
    out.extend(first_batch.to_le_bytes());
    out.extend(segment.to_le_bytes());
    out.extend(crc32c::crc32c(body).to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(body);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

pub(crate) fn record(segment: u64, first_batch: u64, body: &[u8]) -> Vec<u8> {
    record_claiming(segment, first_batch, body, body.len() as u32)
}

/// A segment file with these records, or whatever the bytes are.
pub(crate) fn segment(format: u32, journal: u64, id: u64, records: &[u8]) -> Vec<u8> {
    let bytes = (RECORDS_AT + records.len() + 32).max(SEGMENT_BYTES).next_multiple_of(4096);
    let mut head = b"PTNJRNL\0".to_vec();
    head.extend(format.to_le_bytes());
    head.extend(journal.to_le_bytes());
    head.extend(id.to_le_bytes());
    head.extend((bytes as u64).to_le_bytes());
    let mut out = sealed(&head);
    out.resize(RECORDS_AT, 0);
    out.extend(records);
    out.resize(bytes, 0);
    out
}

fn replica(out: &mut Vec<u8>, (store, number): (u64, u64)) {
    out.extend(store.to_le_bytes());
    out.extend(number.to_le_bytes());
}

/// Term, and who was voted for.
pub(crate) type HardState = (u64, Option<(u64, u64)>);

fn hard_state(out: &mut Vec<u8>, (term, voted_for): HardState) {
    out.extend(term.to_le_bytes());
    out.push(u8::from(voted_for.is_some()));
    replica(out, voted_for.unwrap_or_default());
}

/// Index and term, and nothing else.
fn snapshot(out: &mut Vec<u8>, (index, term): (u64, u64)) {
    out.extend(index.to_le_bytes());
    out.extend(term.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend([0; 1 + 4 * 2]);
}

/// An entry with a command.
pub(crate) fn entry(group: u64, index: u64, term: u64, data: &[u8]) -> Vec<u8> {
    let mut rest = (data.len() as u32).to_le_bytes().to_vec();
    rest.extend(term.to_le_bytes());
    rest.extend(u128::from(index).to_le_bytes());
    rest.push(1);
    rest.extend(data);
    let mut covered = group.to_le_bytes().to_vec();
    covered.extend(index.to_le_bytes());
    covered.extend(&rest);
    let mut out = crc32c::crc32c(&covered).to_le_bytes().to_vec();
    out.extend(rest);
    out
}

/// Changes of one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) create: bool,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) truncate_from: Option<u64>,
    pub(crate) commit: Option<u64>,
    /// First index, and the entries' terms.
    pub(crate) entries: Option<(u64, Vec<u64>)>,
}

impl Group {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(1);
        out.extend(self.id.to_le_bytes());
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        out.push(
            flag(self.create, 1)
                | flag(self.hard_state.is_some(), 2)
                | flag(self.truncate_from.is_some(), 8)
                | flag(self.entries.is_some(), 0x10)
                | flag(self.commit.is_some(), 0x20),
        );
        if self.create {
            replica(out, (1, 1));
        }
        if let Some(state) = self.hard_state {
            hard_state(out, state);
        }
        for index in [self.truncate_from, self.commit].into_iter().flatten() {
            out.extend(index.to_le_bytes());
        }
        if let Some((first, terms)) = &self.entries {
            out.extend(first.to_le_bytes());
            out.extend((terms.len() as u32).to_le_bytes());
            for (n, term) in terms.iter().enumerate() {
                out.extend(entry(self.id, first + n as u64, *term, b"some data"));
            }
        }
    }
}

/// The body of a record with one batch.
pub(crate) fn batch(groups: &[Group]) -> Vec<u8> {
    let mut out = vec![0];
    groups.iter().for_each(|group| group.put(&mut out));
    out
}

// ---- the cold tier ----

pub(crate) fn cold_key(tag: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = vec![tag];
    numbers.iter().for_each(|n| key.extend(n.to_be_bytes()));
    key
}

/// What the cold tier knows of a group.
pub(crate) fn cold_meta(as_of: u64, state: HardState, base: (u64, u64), last: (u64, u64)) -> Vec<u8> {
    let mut out = as_of.to_le_bytes().to_vec();
    replica(&mut out, (1, 1));
    hard_state(&mut out, state);
    out.extend(base.0.to_le_bytes()); // commit
    out.extend(last.0.to_le_bytes());
    out.extend(last.1.to_le_bytes());
    snapshot(&mut out, base);
    sealed(&out)
}

pub(crate) fn cold_entry(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u32).to_le_bytes().to_vec();
    out.extend(bytes);
    out
}

fn hash(key: &[u8], value: &[u8]) -> u64 {
    let mut h = key.len() as u64;
    for part in [key, value] {
        let mut padded = part.to_vec();
        padded.resize((part.len() / 8 + 1) * 8, 0);
        let last = padded.len() / 8 - 1;
        for (n, word) in padded.chunks(8).enumerate() {
            let mut word = u64::from_le_bytes(word.try_into().unwrap());
            if n == last {
                word ^= (part.len() as u64) << 56;
            }
            h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 32;
        }
    }
    h
}

/// Keys and values, without their sum.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The pairs that every cold tier has.
pub(crate) fn cold_base(journal: u64, checkpoint: u64) -> Pairs {
    vec![(b"j".to_vec(), sealed(&journal.to_le_bytes())), (b"c".to_vec(), sealed(&checkpoint.to_le_bytes()))]
}

/// The sum of the contents.
pub(crate) fn cold_sum(pairs: &Pairs) -> (Vec<u8>, Vec<u8>) {
    let sum = pairs.iter().fold(0u64, |sum, (key, value)| sum.wrapping_add(hash(key, value)));
    let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    let mut out = sum.to_le_bytes().to_vec();
    out.extend((pairs.len() as u64).to_le_bytes());
    out.extend((bytes as u64).to_le_bytes());
    (b"s".to_vec(), sealed(&out))
}

/// The simple cold tier's file with one batch.
pub(crate) fn cold_file(pairs: &Pairs) -> Vec<u8> {
    let mut inside = Vec::new();
    for (key, value) in pairs {
        inside.push(1);
        text(&mut inside, key);
        text(&mut inside, value);
    }
    let mut out = Vec::new();
    text(&mut out, &sealed(&inside));
    out
}

/// A whole file of the simple cold tier, sum included.
pub(crate) fn cold_tier(mut pairs: Pairs) -> Vec<u8> {
    let sum = cold_sum(&pairs);
    pairs.push(sum);
    cold_file(&pairs)
}
