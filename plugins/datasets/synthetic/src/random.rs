//! Counter-based randomness: a row is a function of (seed, split, index), whatever was drawn before it.

/// SplitMix64 (Steele et al. 2014), started from a row's coordinates.
pub struct Random(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream of one row.
    pub fn new(seed: u64, split: &str, index: u64) -> Random {
        Random(mix(mix(seed) ^ content_hash(split)).wrapping_add(mix(index)))
    }

    /// A number in `low..=high`. The bias is below 2^-50 for the small ranges here.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        low + mix(self.0) % (high - low + 1)
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.within(0, items.len() as u64 - 1) as usize]
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.within(0, 99) < percent
    }
}

/// FNV-1a with a final mix: the same for the same text in every run and version.
pub fn content_hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv)
}
