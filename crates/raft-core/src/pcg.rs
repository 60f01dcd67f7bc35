//! PCG-XSH-RR 64/32 (O'Neill 2014): the core's only source of randomness. Named by algorithm, so that a seed gives the
//! same stream in every version.

const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

#[derive(Clone, Debug)]
pub(crate) struct Pcg {
    state: u64,
    increment: u64,
}

impl Pcg {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut pcg = Self { state: 0, increment: (stream << 1) | 1 };
        pcg.next_u32();
        pcg.state = pcg.state.wrapping_add(seed);
        pcg.next_u32();
        pcg
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
        #[expect(clippy::cast_possible_truncation, reason = "the algorithm keeps the low 32 bits")]
        let xorshifted = (((old >> 18) ^ old) >> 27) as u32;
        xorshifted.rotate_right((old >> 59) as u32)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32())
    }

    /// A number in `[low, high)`; `low` if the range is empty. The bias of the remainder (2^-32 of the range) does not
    /// matter for timeouts.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.next_u64() % (high - low) }
    }
}

#[cfg(test)]
mod tests {
    use super::Pcg;

    #[test]
    fn matches_the_reference_stream() {
        // The published demo of pcg32 with seed 42, stream 54.
        let mut pcg = Pcg::new(42, 54);
        let first: Vec<u32> = (0..6).map(|_| pcg.next_u32()).collect();
        assert_eq!(first, [0xa15c_02b7, 0x7b47_f409, 0xba1d_3330, 0x83d2_f293, 0xbfa4_784b, 0xcbed_606e]);
    }

    #[test]
    fn stays_in_its_range() {
        let mut pcg = Pcg::new(1, 1);
        assert!((0..1000).all(|_| (10..20).contains(&pcg.between(10, 20))));
        assert_eq!(pcg.between(7, 7), 7);
        assert_eq!(pcg.between(7, 3), 7);
    }
}
