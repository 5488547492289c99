//! 8-bit maps that states are rounded to: each block of [`BLOCK`] elements is divided by its largest magnitude, and every quotient
//! becomes the nearest of 256 entries, whose gaps grow with the magnitude (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
//! Quantization"). This is the reference in f64; devices keep the numbers of the entries, a byte each, and a scale for each block.

/// Elements that share a scale, in row-major order.
pub const BLOCK: usize = 256;

/// Which numbers a map has entries for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// Both signs.
    Signed,
    /// None below zero, and twice as many above.
    Unsigned,
}

impl Map {
    /// Lower-case name as in dumps.
    pub fn name(self) -> &'static str {
        match self {
            Map::Signed => "dynamic8",
            Map::Unsigned => "dynamic8-unsigned",
        }
    }

    /// The entries in ascending order: seven decades, each of twice as many as the one below, then zero and one. In f32, as bitsandbytes
    /// makes them.
    pub fn values(self) -> Vec<f32> {
        let mut values = vec![0.0, 1.0];
        for (decade, power) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            let count = 1u32 << decade << u32::from(self == Map::Unsigned);
            // Borders of equal parts of 0.1..=1, counted from both ends.
            let step = (1.0 - 0.1f32) / count as f32;
            let border = |i: u32| {
                if i < count.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { (-step).mul_add((count - i) as f32, 1.0) }
            };
            for value in (0..count).map(|i| power * ((border(i) + border(i + 1)) / 2.0)) {
                values.push(value);
                if self == Map::Signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        values
    }

    /// Replaces every element by what is kept of it; of two entries equally near the lower one.
    pub fn round(self, x: &mut [f64]) {
        let values = self.values();
        for block in x.chunks_mut(BLOCK) {
            let larger = |top: f64, x: &f64| if x.is_nan() || top.is_nan() { f64::NAN } else { top.max(x.abs()) };
            let absmax = block.iter().fold(0.0, larger);
            for x in block {
                let quotient = if absmax == 0.0 { 0.0 } else { *x / absmax };
                let above = values.partition_point(|&v| f64::from(v) < quotient).clamp(1, 255);
                let [low, high] = [above - 1, above].map(|i| f64::from(values[i]));
                *x = absmax * if (high - quotient).abs() < (quotient - low).abs() { high } else { low };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_and_others_move_to_the_nearest() {
        for map in [Map::Signed, Map::Unsigned] {
            let values = map.values();
            assert_eq!((values.len(), values[255]), (256, 1.0));
            let mut kept: Vec<f64> = values.iter().map(|&v| 3.0 * f64::from(v)).collect();
            let before = kept.clone();
            map.round(&mut kept);
            assert_eq!(kept, before);
            let mut x = vec![1.0, 0.5, 1e-9, 0.0];
            map.round(&mut x);
            assert!((x[1] - 0.5).abs() < 0.0071 && x[1] != 0.5 && (x[0], x[2], x[3]) == (1.0, 0.0, 0.0), "{x:?}");
        }
        let mut zeros = [0.0; 300];
        Map::Signed.round(&mut zeros);
        assert_eq!(zeros, [0.0; 300]);
    }
}
