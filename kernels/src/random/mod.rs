//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011).
//!
//! Element `i` of a draw is a function of `(key, stream, offset + i)` alone, so draws can be
//! split, repeated and resumed anywhere. [`uniform`] and [`normal`] are scalar code at every level:
//! they draw initial values, a few nanoseconds each. Masks of [`dropout()`] are drawn in every
//! training step, and wide.
//!
//! ```text
//! counter words: [index / 4 (low, high), stream (low, high)];  element = word index % 4
//! ```

mod dropout;

pub use dropout::{dropout, dropout_raw};

use crate::pool::Pool;

/// Rounds of the generator.
const ROUNDS: usize = 10;

/// Multipliers of the first and the third counter word.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];

/// What a round adds to the words of the key.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Elements of one task; a multiple of four.
const GRAIN: usize = 16 * 1024;

/// Ten rounds of Philox on a counter of four words.
pub fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    let mut c = counter;
    for _ in 0..ROUNDS {
        let p0 = u64::from(c[0]) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c[2]) * u64::from(MULTIPLIERS[1]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32];
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    c
}

/// Uniform in `[0, 1)`, multiples of `2^-24`. Overwrites `out`.
pub fn uniform(pool: &Pool, key: u64, stream: u64, offset: u64, out: &mut [f32]) {
    draw(pool, key, stream, offset, out, |words| words.map(|word| unit(word >> 8)));
}

/// Standard normal by the method of Box and Muller. Overwrites `out`.
pub fn normal(pool: &Pool, key: u64, stream: u64, offset: u64, out: &mut [f32]) {
    draw(pool, key, stream, offset, out, |[a, b, c, d]| {
        let pair = |radius: u32, angle: u32| {
            // In (0, 1], so that the logarithm is finite.
            let radius = (-2.0 * unit((radius >> 8) + 1).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * unit(angle >> 8)).sin_cos();
            (radius * cos, radius * sin)
        };
        let ((a, b), (c, d)) = (pair(a, b), pair(c, d));
        [a, b, c, d]
    });
}

fn unit(bits: u32) -> f32 {
    bits as f32 * (1.0 / (1 << 24) as f32)
}

fn draw(pool: &Pool, key: u64, stream: u64, offset: u64, out: &mut [f32], values: impl Fn([u32; 4]) -> [f32; 4] + Sync) {
    let block = |index: u64| {
        let counter = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
        values(philox(key, counter))
    };
    pool.run_pieces(out, GRAIN, |task, out| {
        let mut position = offset.wrapping_add((task * GRAIN) as u64);
        let mut rest = out;
        while !rest.is_empty() {
            let lane = (position % 4) as usize;
            let count = rest.len().min(4 - lane);
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&block(position / 4)[lane..][..count]);
            position = position.wrapping_add(count as u64);
            rest = later;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox(0x299f_31d0_a409_3822, [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_are_positions_of_one_stream() {
        let (one, two) = (Pool::new(1), Pool::new(2));
        let mut whole = vec![0.0; 3 * GRAIN + 7];
        uniform(&one, 1, 2, 0, &mut whole);
        let mut part = vec![0.0; 2 * GRAIN];
        uniform(&two, 1, 2, 5, &mut part);
        assert_eq!(part[..], whole[5..5 + part.len()]);
        assert!(whole.iter().all(|&x| (0.0..1.0).contains(&x)));
        let mut other = vec![0.0; 16];
        uniform(&one, 1, 3, 0, &mut other);
        assert_ne!(other[..], whole[..16]);
    }

    #[test]
    fn moments() {
        let pool = Pool::new(2);
        let mut x = vec![0.0; 200_000];
        normal(&pool, 7, 0, 0, &mut x);
        let count = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count;
        let fourth = x.iter().map(|&x| f64::from(x).powi(4)).sum::<f64>() / count;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02);
        assert!((fourth - 3.0).abs() < 0.1);
        uniform(&pool, 7, 0, 0, &mut x);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        assert!((mean - 0.5).abs() < 0.005);
    }
}
