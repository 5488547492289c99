//! The packed batch: all tokens of all sequences of a step, one after another, without padding.
//!
//! ```text
//! ids        a0 a1 a2 | b0 b1          segments   0  0  0 | 1  1
//! labels     a1 a2 -- | b1 --          positions  0  1  2 | 0  1
//! ```
//!
//! `labels[i]` is already the token to predict from position `i`, inside the same sequence; the last position of each
//! sequence predicts nothing. Attention must not cross segments.

use crate::{Encoded, IGNORE};

/// One step's tokens, all vectors of equal length.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// Token ids.
    pub ids: Vec<i32>,
    /// The token that each position predicts, or [`IGNORE`].
    pub labels: Vec<i32>,
    /// Factor of each position's loss; 0 exactly where the label is [`IGNORE`].
    pub weights: Vec<f32>,
    /// Position within the sequence.
    pub positions: Vec<i32>,
    /// Number of the sequence, ascending from 0.
    pub segments: Vec<i32>,
    /// Number of sequences.
    pub sequences: usize,
}

impl Batch {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions that are trained on.
    pub fn trained_tokens(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORE).count()
    }
}

/// Concatenates sequences. Empty ones are left out.
pub fn collate<'a>(sequences: impl IntoIterator<Item = &'a Encoded>) -> Batch {
    let mut batch = Batch::default();
    for sequence in sequences {
        let count = sequence.ids.len();
        if count == 0 {
            continue;
        }
        let segment = batch.sequences as i32;
        batch.ids.extend(&sequence.ids);
        batch.labels.extend(&sequence.labels[1..]);
        batch.labels.push(IGNORE);
        batch.weights.extend((1..count).map(|next| sequence.weight(next)));
        batch.weights.push(0.0);
        batch.positions.extend(0..count as i32);
        batch.segments.extend(std::iter::repeat_n(segment, count));
        batch.sequences += 1;
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shifted_inside_each_sequence() {
        let a = Encoded { ids: vec![1, 2, 3], labels: vec![1, IGNORE, 3], weights: None };
        let b = Encoded { ids: vec![4, 5], labels: vec![IGNORE, 5], weights: Some(vec![0.0, 0.5]) };
        let batch = collate([&a, &Encoded::default(), &b]);
        assert_eq!(batch.ids, [1, 2, 3, 4, 5]);
        assert_eq!(batch.labels, [IGNORE, 3, IGNORE, 5, IGNORE]);
        assert_eq!(batch.weights, [0.0, 1.0, 0.0, 0.5, 0.0]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.segments, [0, 0, 0, 1, 1]);
        assert_eq!((batch.sequences, batch.tokens(), batch.trained_tokens()), (2, 5, 2));
    }
}
