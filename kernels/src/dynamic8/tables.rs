//! The entries of a map, where the nearest one changes, and a table that finds it for many numbers at once.

use std::sync::OnceLock;

use super::Map;

/// Powers of ten of the decades.
const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

pub(super) struct Tables {
    pub(super) values: [f32; 256],
    /// Entry `i + 1` is the nearest from the `i`-th of these on.
    thresholds: Vec<f32>,
    pub(super) buckets: Buckets,
}

/// The nearest entry by the leading bits of a number: sign, exponent and as much of the mantissa as it takes for a bucket to have
/// at most one threshold.
pub(crate) struct Buckets {
    /// First those of numbers from zero up, then those of numbers below. The upper 8 bits are the entry at the bucket's small end, counted from
    /// the other end below zero, so that it grows with the magnitude; the lower 24 are the trailing bits from which on it is the next.
    pub(crate) steps: Vec<u32>,
    /// Trailing bits.
    pub(crate) shift: u32,
    /// Leading bits of the first bucket, which takes all smaller numbers too, and of the last, which takes all larger ones.
    pub(crate) ends: [u32; 2],
}

pub(super) fn of(map: Map) -> &'static Tables {
    static TABLES: [OnceLock<Tables>; 2] = [OnceLock::new(), OnceLock::new()];
    TABLES[usize::from(map == Map::Unsigned)].get_or_init(|| Tables::new(map))
}

/// Border `i` of `count` equal parts of 0.1..=1, in the steps of torch's `linspace`, which counts from both ends.
fn border(i: u32, count: u32) -> f32 {
    let step = (1.0 - 0.1f32) / count as f32;
    if i < count.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { (-step).mul_add((count - i) as f32, 1.0) }
}

fn values(map: Map) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for (decade, power) in DECADES.into_iter().enumerate() {
        let count = 1 << decade << u32::from(map == Map::Unsigned);
        for i in 0..count {
            let value = power * ((border(i, count) + border(i + 1, count)) / 2.0);
            values.push(value);
            if map == Map::Signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|i| values[i])
}

/// The smallest number to which `b` is nearer than `a`, as f32 sees it.
fn threshold(a: f32, b: f32) -> f32 {
    let nearer = |x: f32| (x - b).abs() < (x - a).abs();
    let mut x = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
    while nearer(x.next_down()) {
        x = x.next_down();
    }
    while !nearer(x) {
        x = x.next_up();
    }
    x
}

impl Tables {
    fn new(map: Map) -> Tables {
        let values = values(map);
        let thresholds: Vec<f32> = values.windows(2).map(|w| threshold(w[0], w[1])).collect();
        let mut tables = Tables { values, thresholds, buckets: Buckets { steps: Vec::new(), shift: 0, ends: [0; 2] } };
        // The widest bucket of numbers below one, in 0.5..1, is narrower than the narrowest gap, in 0.1..1.
        tables.fill_buckets(if map == Map::Signed { 17 } else { 16 });
        tables
    }

    pub(super) fn nearest(&self, x: f32) -> u8 {
        if x.is_nan() { 0 } else { self.thresholds.partition_point(|&t| t <= x) as u8 }
    }

    fn fill_buckets(&mut self, shift: u32) {
        let smallest = self.thresholds.iter().fold(1.0f32, |least, t| least.min(t.abs()));
        let ends = [(smallest.to_bits() >> shift) - 1, 1.0f32.to_bits() >> shift];
        let mut steps = Vec::new();
        for below in [false, true] {
            // Entry of a magnitude, counted so that it grows.
            let entry = |bits: u32| match below {
                false => u32::from(self.nearest(f32::from_bits(bits))),
                true => 255 - u32::from(self.nearest(-f32::from_bits(bits))),
            };
            for bucket in ends[0]..=ends[1] {
                let (first, last) = (bucket << shift, ((bucket + 1) << shift) - 1);
                assert!(entry(last) - entry(first) <= 1, "a bucket has at most one threshold");
                // Trailing bits that still belong to the first entry, by halves.
                let (mut same, mut beyond) = (0, 1 << shift);
                while same + 1 < beyond {
                    let middle = (same + beyond) / 2;
                    if entry(first + middle) == entry(first) { same = middle } else { beyond = middle }
                }
                steps.push(entry(first) << 24 | beyond);
            }
        }
        self.buckets = Buckets { steps, shift, ends };
    }
}
