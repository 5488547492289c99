//! From one row of logits to a token.

use swift_graph::philox;

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only the `k` likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

impl Sampling {
    /// Draws a token. The draw is a function of (seed, sequence, position) alone, so batching changes nothing.
    pub fn draw(&self, logits: &[f32], sequence: u64, position: u64) -> i32 {
        if self.temperature <= 0.0 || self.top_k == 1 {
            return argmax(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let top = f64::from(logits[order[0] as usize]);
        let weight = |t: &u32| ((f64::from(logits[*t as usize]) - top) / f64::from(self.temperature)).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if self.top_p < 1.0 {
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let mut keep = 0;
            while keep < weights.len() && (keep == 0 || sum < f64::from(self.top_p) * total) {
                sum += weights[keep];
                keep += 1;
            }
            weights.truncate(keep);
        }
        let total: f64 = weights.iter().sum();
        let mut left = uniform(self.seed, sequence, position) * total;
        for (token, w) in order.iter().zip(&weights) {
            left -= w;
            if left <= 0.0 {
                return *token as i32;
            }
        }
        order[weights.len() - 1] as i32
    }
}

/// First of the largest logits.
fn argmax(logits: &[f32]) -> i32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best as i32
}

/// A number in 0..1 from (seed, sequence, position).
fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let counter = [position as u32, (position >> 32) as u32, sequence as u32, (sequence >> 32) as u32];
    let words = philox::philox(key, counter);
    let bits = (u64::from(words[0]) << 21) ^ u64::from(words[1] >> 11);
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(Sampling::default().draw(&[0.0, 3.0, 3.0, -1.0], 0, 0), 1);
    }

    #[test]
    fn draws_follow_the_distribution_and_its_cuts() {
        let logits = [0.0f32, (3.0f32).ln(), f32::NEG_INFINITY];
        let s = Sampling { temperature: 1.0, ..Sampling::default() };
        let ones = (0..4000).filter(|&i| s.draw(&logits, i, 7) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones}");
        let top_p = Sampling { top_p: 0.5, ..s.clone() };
        let top_k = Sampling { top_k: 1, ..s };
        assert!((0..100).all(|i| top_p.draw(&logits, i, 0) == 1 && top_k.draw(&logits, i, 0) == 1));
    }
}
