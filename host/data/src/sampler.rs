//! Which samples make which micro-batch.
//!
//! The order of an epoch is a pure function of the seed and the epoch, and a position is a count of micro-batches since
//! the start of the run. So a resumed run continues exactly where it stopped, with nothing but that count saved.

use crate::split::{shuffled, stream};
use crate::{DataError, Result};

/// How samples are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// `batch` whole samples a micro-batch, concatenated without padding.
    Samples {
        /// `per_device_train_batch_size`.
        batch: usize,
    },
    /// Bins of at most `length` tokens, filled first-fit by falling length over windows of `window` samples;
    /// `batch` bins a micro-batch.
    Bins {
        /// `packing_length`.
        length: usize,
        /// `per_device_train_batch_size`.
        batch: usize,
        /// Samples that are packed together; more waste less and mix less.
        window: usize,
    },
}

/// Settings of a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerOptions {
    /// How samples are put together.
    pub grouping: Grouping,
    /// Seed of the order.
    pub seed: u64,
    /// Whether epochs are shuffled; without, every epoch goes through the samples in order.
    pub shuffle: bool,
    /// Whether an incomplete last micro-batch of an epoch is left out.
    pub drop_last: bool,
}

/// A position in a run, all that a checkpoint has to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct SamplerState {
    /// Micro-batches handed out since the start of the run.
    pub step: u64,
}

/// Samples of one micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Number within the epoch, from 0.
    pub index: usize,
    /// Sample numbers in the order of their tokens.
    pub samples: Vec<usize>,
}

/// Hands out micro-batches, epoch after epoch without end.
#[derive(Debug, Clone)]
pub struct Sampler {
    lengths: Vec<usize>,
    options: SamplerOptions,
    step: u64,
    epoch: u64,
    index: usize,
    /// Micro-batches of `epoch`.
    plan: Vec<Vec<usize>>,
}

impl Sampler {
    /// A sampler over samples of these token counts, at the start of epoch 0.
    pub fn new(lengths: Vec<usize>, options: SamplerOptions) -> Result<Self> {
        let setting = |reason: String| Err(DataError::Setting(reason));
        let (batch, window) = match options.grouping {
            Grouping::Samples { batch } => (batch, 1),
            Grouping::Bins { length, batch, window } => {
                if let Some((sample, long)) = lengths.iter().enumerate().find(|&(_, &tokens)| tokens > length) {
                    return setting(format!("sample {sample} of {long} tokens does not fit `packing_length` {length}"));
                }
                (batch, window)
            }
        };
        if batch == 0 || window == 0 {
            return setting("the batch size and the packing window must be positive".into());
        }
        if lengths.is_empty() {
            return setting("the dataset is empty".into());
        }
        let mut sampler = Self { lengths, options, step: 0, epoch: 0, index: 0, plan: Vec::new() };
        sampler.plan = sampler.plan_epoch(0);
        if sampler.plan.is_empty() {
            let count = sampler.lengths.len();
            return setting(format!("{count} samples do not fill one batch; use a smaller batch or keep the last one"));
        }
        Ok(sampler)
    }

    /// Micro-batches of an epoch. With bins it can differ a little from epoch to epoch.
    pub fn epoch_len(&self, epoch: u64) -> usize {
        match self.options.grouping {
            Grouping::Samples { batch } if self.options.drop_last => self.lengths.len() / batch,
            Grouping::Samples { batch } => self.lengths.len().div_ceil(batch),
            Grouping::Bins { .. } if epoch == self.epoch => self.plan.len(),
            Grouping::Bins { .. } => self.plan_epoch(epoch).len(),
        }
    }

    /// The position.
    pub fn state(&self) -> SamplerState {
        SamplerState { step: self.step }
    }

    /// Micro-batches of all epochs before `epoch`.
    pub fn steps_before(&self, epoch: u64) -> u64 {
        match self.options.grouping {
            Grouping::Samples { .. } => epoch * self.epoch_len(0) as u64,
            Grouping::Bins { .. } => (0..epoch).map(|epoch| self.epoch_len(epoch) as u64).sum(),
        }
    }

    /// Goes to a position: the next micro-batch is number `step` of the run.
    pub fn seek(&mut self, state: SamplerState) {
        let mut left = state.step;
        let mut epoch = 0;
        if let Grouping::Samples { .. } = self.options.grouping {
            let len = self.epoch_len(0) as u64;
            (epoch, left) = (left / len, left % len);
        } else {
            loop {
                let len = self.epoch_len(epoch) as u64;
                if left < len.max(1) {
                    break;
                }
                left -= len;
                epoch += 1;
            }
        }
        (self.step, self.index) = (state.step, left as usize);
        if epoch != self.epoch {
            self.plan = self.plan_epoch(epoch);
            self.epoch = epoch;
        }
    }

    /// The next micro-batch.
    pub fn next_batch(&mut self) -> MicroBatch {
        // An epoch of bins is never empty while samples exist, so this ends.
        while self.index >= self.plan.len() {
            self.epoch += 1;
            self.index = 0;
            self.plan = self.plan_epoch(self.epoch);
        }
        let batch = MicroBatch { epoch: self.epoch, index: self.index, samples: self.plan[self.index].clone() };
        self.index += 1;
        self.step += 1;
        batch
    }

    fn plan_epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let SamplerOptions { grouping, seed, shuffle, drop_last } = self.options;
        let order = if shuffle {
            shuffled(self.lengths.len(), seed, stream::EPOCH.wrapping_add(epoch))
        } else {
            (0..self.lengths.len()).collect()
        };
        let (units, batch): (Vec<Vec<usize>>, usize) = match grouping {
            Grouping::Samples { batch } => {
                let batches = order.chunks(batch).map(<[usize]>::to_vec).collect();
                return keep_full(batches, batch, drop_last);
            }
            Grouping::Bins { length, batch, window } => {
                let bins: Vec<Vec<usize>> =
                    order.chunks(window).flat_map(|window| first_fit(window, &self.lengths, length)).collect();
                if !shuffle {
                    (bins, batch)
                } else {
                    // First-fit puts full bins first; mixing them keeps the batch size even over the epoch.
                    let places = shuffled(bins.len(), seed, stream::BINS.wrapping_add(epoch));
                    let mut bins: Vec<Option<Vec<usize>>> = bins.into_iter().map(Some).collect();
                    (places.into_iter().filter_map(|place| bins[place].take()).collect(), batch)
                }
            }
        };
        // A short last batch of bins is no loss of generality: with fewer bins than `batch` it is all there is.
        let drop_last = drop_last && units.len() > batch;
        units.chunks(batch).filter(|bins| !drop_last || bins.len() == batch).map(<[Vec<usize>]>::concat).collect()
    }
}

fn keep_full(mut batches: Vec<Vec<usize>>, batch: usize, drop_last: bool) -> Vec<Vec<usize>> {
    if drop_last && batches.last().is_some_and(|last| last.len() < batch) {
        batches.pop();
    }
    batches
}

/// First-fit decreasing: at most 11/9 of the optimal number of bins (Johnson, 1973). Samples of a bin keep the order
/// of the window.
fn first_fit(window: &[usize], lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut falling: Vec<usize> = (0..window.len()).collect();
    falling.sort_by_key(|&place| (std::cmp::Reverse(lengths[window[place]]), place));
    let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
    for place in falling {
        let length = lengths[window[place]];
        match bins.iter_mut().find(|(free, _)| *free >= length) {
            Some((free, places)) => {
                *free -= length;
                places.push(place);
            }
            None => bins.push((capacity - length, vec![place])),
        }
    }
    bins.into_iter()
        .map(|(_, mut places)| {
            places.sort_unstable();
            places.into_iter().map(|place| window[place]).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(count: usize) -> Vec<usize> {
        (0..count).map(|i| 1 + (crate::draw(9, 9, i as u64) % 64) as usize).collect()
    }

    fn options(grouping: Grouping) -> SamplerOptions {
        SamplerOptions { grouping, seed: 42, shuffle: true, drop_last: false }
    }

    const BINS: Grouping = Grouping::Bins { length: 64, batch: 2, window: 50 };

    #[test]
    fn every_sample_comes_once_an_epoch() {
        for grouping in [Grouping::Samples { batch: 4 }, BINS] {
            let mut sampler = Sampler::new(lengths(203), options(grouping)).unwrap();
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let batches: Vec<_> = (0..sampler.epoch_len(epoch)).map(|_| sampler.next_batch()).collect();
                assert!(batches.iter().enumerate().all(|(i, batch)| (batch.epoch, batch.index) == (epoch, i)));
                let order: Vec<usize> = batches.into_iter().flat_map(|batch| batch.samples).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..203).collect::<Vec<_>>());
                orders.push(order);
            }
            assert_ne!(orders[0], orders[1]);
            assert_eq!(sampler.state().step, sampler.steps_before(3));
        }
    }

    #[test]
    fn seeking_continues_exactly() {
        for grouping in [Grouping::Samples { batch: 3 }, BINS] {
            let mut whole = Sampler::new(lengths(50), options(grouping)).unwrap();
            let run: Vec<_> = (0..90).map(|_| whole.next_batch()).collect();
            for step in [0, 1, 16, 17, 18, 33, 34, 60, 89] {
                let mut resumed = Sampler::new(lengths(50), options(grouping)).unwrap();
                resumed.next_batch();
                resumed.seek(SamplerState { step });
                assert_eq!(resumed.next_batch(), run[step as usize], "{grouping:?} at {step}");
                assert_eq!(resumed.state().step, step + 1);
            }
        }
    }

    #[test]
    fn bins_never_overflow_and_waste_little() {
        let lengths = lengths(2000);
        let grouping = Grouping::Bins { length: 128, batch: 1, window: 1000 };
        let mut sampler = Sampler::new(lengths.clone(), options(grouping)).unwrap();
        let bins = sampler.epoch_len(0);
        for _ in 0..bins {
            let tokens: usize = sampler.next_batch().samples.iter().map(|&sample| lengths[sample]).sum();
            assert!((1..=128).contains(&tokens));
        }
        let total: usize = lengths.iter().sum();
        assert!(total as f64 / (bins * 128) as f64 > 0.98, "{total} tokens in {bins} bins");
    }

    #[test]
    fn the_last_batch_is_kept_or_dropped() {
        let count = |drop_last| {
            let options = SamplerOptions { drop_last, shuffle: false, ..options(Grouping::Samples { batch: 4 }) };
            let mut sampler = Sampler::new(vec![1; 10], options).unwrap();
            assert_eq!(sampler.next_batch().samples, [0, 1, 2, 3]);
            sampler.epoch_len(0)
        };
        assert_eq!((count(false), count(true)), (3, 2));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refuse = |lengths: Vec<usize>, options: SamplerOptions, part: &str| {
            let error = Sampler::new(lengths, options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refuse(vec![], options(Grouping::Samples { batch: 1 }), "empty");
        refuse(vec![1], options(Grouping::Samples { batch: 0 }), "positive");
        refuse(vec![65], options(BINS), "does not fit");
        let drop = SamplerOptions { drop_last: true, ..options(Grouping::Samples { batch: 2 }) };
        refuse(vec![1], drop, "smaller batch");
    }
}
