//! Rotary position embedding (Su et al. 2021), with the frequency table given by the model plugin.

use std::sync::Arc;

use super::{OpRule, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Float, Graph, Result, Type};

/// Which elements rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Element `i` with `i + rotary/2` (Hugging Face).
    Halves,
    /// Element `2i` with `2i + 1` (Meta).
    Interleaved,
}

/// Inputs `x [n, heads, head_dim]`, `positions [n]`, or `[rows, n]` with sections. Pair `i` of a head turns by `position · inv_freq[i]`; cosine and sine are
/// multiplied by `attn_scale` (YaRN). Elements past `2 · inv_freq.len()` pass through.
///
/// With sections, consecutive pairs follow one row of the positions: section `k` row `k mod rows`. Qwen2-VL's time, height and width
/// are three sections; interleaved ones are sections of one pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rope {
    /// Frequencies per pair.
    pub inv_freq: Arc<[Float]>,
    /// Pairing.
    pub layout: RopeLayout,
    /// Factor of cosine and sine.
    pub attn_scale: Float,
    /// Turn backwards: the gradient of the forward turn.
    pub inverse: bool,
    /// Pairs of each section; empty where tokens have one position.
    pub sections: Arc<[u32]>,
}

impl Rope {
    /// The row of `rows` of positions that turns each pair; empty without sections.
    pub fn row_of_pair(&self, rows: usize) -> Vec<u8> {
        let section = |(k, &pairs): (usize, &u32)| std::iter::repeat_n((k % rows.max(1)) as u8, pairs as usize);
        self.sections.iter().enumerate().flat_map(section).collect()
    }
}

impl OpRule for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), &inputs[..1])?;
        let (x, positions) = (&inputs[0], &inputs[1]);
        let at = positions.shape.dims();
        let tokens = if self.sections.is_empty() { at } else { at.get(1..).unwrap_or_default() };
        if x.shape.rank() != 3 || tokens != &x.shape[..1] || !positions.dtype.is_int() {
            let rule = "takes x [n, heads, head_dim] and whole-number positions [n], or [rows, n] with sections";
            return Err(Error::shape(self.name(), rule, inputs));
        }
        if !self.sections.is_empty() {
            let sum = self.sections.iter().try_fold(0u32, |sum, &pairs| sum.checked_add(pairs));
            if self.sections.contains(&0) || sum.map(|sum| sum as usize) != Some(self.inv_freq.len()) {
                let rule = format!("its sections {:?} are not {} pairs in all", self.sections, self.inv_freq.len());
                return Err(Error::shape(self.name(), rule, inputs));
            }
            let rows = positions.shape[0].as_fixed().filter(|rows| (1..=u64::from(u8::MAX)).contains(rows));
            if rows.is_none() {
                return Err(Error::shape(self.name(), "takes positions of 1 to 255 rows", inputs));
            }
        }
        let rotary = 2 * self.inv_freq.len() as u64;
        if x.shape[2].as_fixed().is_none_or(|d| rotary > d) {
            return Err(Error::shape(self.name(), format!("turns {rotary} elements of a head, more than it has"), inputs));
        }
        Ok(vec![x.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, d) = (cx.input(0), cx.input(0).cols());
        let (positions, pairs, heads) = (&cx.input(1).data, self.inv_freq.len(), x.shape[1]);
        let n = x.shape[0];
        let row_of_pair = self.row_of_pair(positions.len() / n.max(1));
        let mut out = x.data.clone();
        for (row, out) in out.chunks_exact_mut(d.max(1)).enumerate() {
            for (p, freq) in self.inv_freq.iter().enumerate() {
                let (a, b) = match self.layout {
                    RopeLayout::Halves => (p, p + pairs),
                    RopeLayout::Interleaved => (2 * p, 2 * p + 1),
                };
                let at = row_of_pair.get(p).map_or(0, |&row| usize::from(row) * n);
                let angle = positions[at + row / heads] * freq.0 * if self.inverse { -1.0 } else { 1.0 };
                let (sin, cos) = (angle.sin() * self.attn_scale.0, angle.cos() * self.attn_scale.0);
                (out[a], out[b]) = (out[a] * cos - out[b] * sin, out[a] * sin + out[b] * cos);
            }
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let d = cx.g.push(Rope { inverse: !self.inverse, ..self.clone() }, &[d, cx.input(1)])?;
        cx.add(0, d)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(6 * self.inv_freq.len() as u64, &inputs[0].shape[..2])
    }
}
