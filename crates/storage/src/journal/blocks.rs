//! Records on their way to the disk, in whole blocks.

/// What journals are written in. A multiple of every usual disk's and file system's own block, so that such a write may
/// pass by the page cache; see [`RealDisk`](crate::disk::RealDisk).
pub(crate) const BLOCK: usize = 4096;

/// Memory for what is written at once: the block in which the last record ended, up to its end; the new record; zeroes
/// to the end of its last block. It begins at an address that is a multiple of [`BLOCK`].
///
/// The begin of the first block is written again as it is on the disk: a disk that writes sectors whole or not at all
/// cannot lose it.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    bytes: Vec<u8>,
    /// Where in `bytes` the first block begins.
    start: usize,
    /// What is on the disk of the block that the next record begins in.
    tail: Vec<u8>,
}

impl Blocks {
    /// The next record begins behind `tail`, the used part of a block.
    pub(crate) fn after(tail: Vec<u8>) -> Self {
        debug_assert!(tail.len() < BLOCK);
        Self { tail, ..Self::default() }
    }

    /// Begins a write, with room for `len` bytes more.
    pub(crate) fn begin(&mut self, len: usize) {
        self.bytes.clear();
        self.bytes.reserve(BLOCK + (self.tail.len() + len).next_multiple_of(BLOCK));
        self.start = self.bytes.as_ptr().align_offset(BLOCK);
        self.bytes.resize(self.start, 0);
        self.bytes.extend_from_slice(&self.tail);
    }

    /// Appends to what is written.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.bytes.capacity() - self.bytes.len(), "`begin` was told less");
        self.bytes.extend_from_slice(bytes);
    }

    /// All that was pushed.
    pub(crate) fn pushed(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start + self.tail.len()..]
    }

    /// What to write, and how many bytes before the new record it begins.
    pub(crate) fn whole(&mut self) -> (&[u8], usize) {
        let len = (self.bytes.len() - self.start).next_multiple_of(BLOCK);
        self.bytes.resize(self.start + len, 0);
        (&self.bytes[self.start..], self.tail.len())
    }

    /// It was written, and the next record begins `stride` bytes behind this one's begin. Memory beyond `keep` bytes is
    /// given back.
    pub(crate) fn written(&mut self, stride: usize, keep: usize) {
        let next = self.tail.len() + stride;
        let from = self.start + next / BLOCK * BLOCK;
        self.tail.clear();
        self.tail.extend_from_slice(&self.bytes[from..from + next % BLOCK]);
        if self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }

    /// The next record begins at the begin of a block.
    pub(crate) fn at_begin_of_block(&mut self) {
        self.tail.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is written block by block is what was pushed, at its place, and zeroes after it; always aligned.
        #[test]
        fn a_file_written_in_blocks_holds_the_records(
            strides in proptest::collection::vec(1usize..3 * BLOCK, 1..20),
            begin in 0..BLOCK,
            keep in prop_oneof![Just(0), Just(usize::MAX)],
        ) {
            let mut file = vec![9; begin];
            let mut wanted = file.clone();
            let mut blocks = Blocks::after(file.clone());
            let mut offset = begin;
            for (n, stride) in strides.into_iter().enumerate() {
                let record = vec![n as u8 + 1; stride];
                wanted.extend_from_slice(&record);
                // As the journal does: something behind the record that the next one replaces.
                blocks.begin(stride + 8);
                blocks.push(&record);
                blocks.push(&[0; 8]);
                blocks.pushed()[0] = n as u8 + 1;
                let (bytes, before) = blocks.whole();
                let at = offset - before;
                prop_assert_eq!(at % BLOCK, 0);
                prop_assert_eq!(bytes.len() % BLOCK, 0);
                prop_assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0);
                file.resize(at + bytes.len(), 0xff);
                file[at..].copy_from_slice(bytes);
                blocks.written(stride, keep);
                offset += stride;
                prop_assert_eq!(&file[..offset], &wanted[..]);
                prop_assert!(file[offset..].iter().all(|b| *b == 0));
            }
        }
    }
}
