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

/// The nearest entry by the leading bits of a magnitude, exponent and as much of the mantissa as it takes for a bucket to have at most
/// one threshold.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vectors of other processors look up one number at a time"))]
pub(crate) struct Buckets {
    /// First those of numbers from zero up, then, in the signed map, those of numbers below. The lower 8 bits are the entry at the bucket's
    /// small end, counted from the other end below zero, so that it grows with the magnitude. The upper ones, as many as
    /// [`Buckets::shift`] says, are the last trailing bits of a magnitude that still belongs to it; those beyond belong to the next.
    pub(crate) steps: Vec<u32>,
    /// Leading bits of the first bucket, which takes all smaller numbers too. The last one is that of one.
    pub(crate) first: u32,
}

impl Buckets {
    /// Trailing bits of a magnitude. The widest bucket of numbers below one, in 0.5..1, is narrower than the narrowest gap, in 0.1..1.
    pub(crate) const fn shift(map: Map) -> u32 {
        match map {
            Map::Signed => 17,
            Map::Unsigned => 16,
        }
    }
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
        let mut tables = Tables { values, thresholds, buckets: Buckets { steps: Vec::new(), first: 0 } };
        tables.fill_buckets(map);
        tables
    }

    pub(super) fn nearest(&self, x: f32) -> u8 {
        if x.is_nan() { 0 } else { self.thresholds.partition_point(|&t| t <= x) as u8 }
    }

    fn fill_buckets(&mut self, map: Map) {
        let shift = Buckets::shift(map);
        let smallest = self.thresholds.iter().fold(1.0f32, |least, t| least.min(t.abs()));
        let (first, last) = ((smallest.to_bits() >> shift) - 1, 1.0f32.to_bits() >> shift);
        let mut steps = Vec::new();
        for below in [false, true].into_iter().take(1 + usize::from(map == Map::Signed)) {
            // Entry of a magnitude, counted so that it grows.
            let entry = |bits: u32| match below {
                false => u32::from(self.nearest(f32::from_bits(bits))),
                true => 255 - u32::from(self.nearest(-f32::from_bits(bits))),
            };
            for bucket in first..=last {
                let start = bucket << shift;
                // By halves: trailing bits that belong to the bucket's first entry, and that do not.
                let (mut same, mut beyond) = (0, 1 << shift);
                while same + 1 < beyond {
                    let middle = (same + beyond) / 2;
                    if entry(start + middle) == entry(start) { same = middle } else { beyond = middle }
                }
                assert!(entry(start + (1 << shift) - 1) - entry(start) <= 1, "a bucket has at most one threshold");
                steps.push(same << (32 - shift) | entry(start));
            }
        }
        self.buckets = Buckets { steps, first };
    }
}
