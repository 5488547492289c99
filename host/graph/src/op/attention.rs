//! Scaled dot-product attention over packed sequences.

use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use std::ops::Range;

use super::{OpRule, ReduceOp, arity, count, floats};
use crate::{Dim, Error, Float, Graph, Result, StateId, SymbolId, Type};

/// What both attention ops share. Masks are structural, so that no `[n, n]` tensor exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSpec {
    /// Factor of the scores.
    pub scale: Float,
    /// `cap·tanh(score/cap)` where set.
    pub softcap: Option<Float>,
    /// Later tokens are masked.
    pub causal: bool,
    /// Only tokens nearer than `window` are seen: the last `window` of them where causal, the own one included.
    pub window: Option<u32>,
}

/// Inputs `q [n, heads, d]`, `k [n, kv, d]`, `v [n, kv, d]`, `segments [n]` (runs of equal values; tokens see only their own run).
/// `heads` is a multiple of `kv`. Output 0 is `[n, heads, d]`, output 1 the log-sum-exp of each row `[heads, n]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Scale, cap and mask.
    pub spec: AttentionSpec,
}

fn check(op: &'static str, spec: &AttentionSpec, inputs: &[Type]) -> Result<()> {
    floats(op, &inputs[..3])?;
    let (q, k, v) = (&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
    if q.rank() != 3 || k.rank() != 3 || k != v || q[0] != k[0] || q[2] != k[2] {
        return Err(Error::shape(op, "takes q [n, heads, d], k and v [n, kv, d]", inputs));
    }
    match (q[1].as_fixed(), k[1].as_fixed(), q[2].as_fixed()) {
        (Some(heads), Some(kv), Some(d)) if kv > 0 && heads % kv == 0 && d > 0 => {}
        _ => return Err(Error::shape(op, "head counts and head size must be fixed, heads a multiple of kv", inputs)),
    }
    if spec.window == Some(0) || !spec.scale.0.is_finite() || spec.softcap.is_some_and(|c| c.0.is_nan() || c.0 <= 0.0) {
        return Err(Error::attr(op, "window must be at least 1, scale finite and softcap positive"));
    }
    Ok(())
}

impl OpRule for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 4)?;
        check(self.name(), &self.spec, inputs)?;
        let q = &inputs[0];
        if !inputs[3].dtype.is_int() || inputs[3].shape.dims() != &q.shape[..1] {
            return Err(Error::shape(self.name(), "takes whole-number segments [n]", inputs));
        }
        Ok(vec![q.clone(), Type::f32(vec![q.shape[1].clone(), q.shape[0].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (q, v) = (cx.input(0), cx.input(2));
        let heads = Heads::of(cx);
        let run = runs(&cx.whole(3));
        let (mut o, mut lse) = (vec![0.0; q.data.len()], vec![0.0; heads.n * heads.q]);
        for h in 0..heads.q {
            for i in 0..heads.n {
                let seen = visible(&self.spec, &run, i);
                let scores: Vec<f64> = seen.clone().map(|j| self.spec.score(cx, &heads, h, i, j)).collect();
                let sum = ReduceOp::LogSumExp.eval(&scores);
                lse[h * heads.n + i] = sum;
                let o = &mut o[heads.q_at(h, i)..][..heads.d];
                for (j, s) in seen.zip(scores) {
                    let v = &v.data[heads.k_at(h, j)..];
                    o.iter_mut().zip(v).for_each(|(o, v)| *o += (s - sum).exp() * v);
                }
            }
        }
        Ok(vec![Tensor::new(cx.shape(0)?, o), Tensor::new(cx.shape(1)?, lse)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, lse, o) = (cx.d_out()?, cx.output(1)?, cx.node());
        let inputs = [cx.input(0), cx.input(1), cx.input(2), cx.input(3), o, lse, d];
        let node = cx.g.push(AttentionBackward { spec: self.spec.clone() }, &inputs)?;
        for i in 0..3 {
            if cx.needs(i) {
                let part = cx.g.part(node, i as u8)?;
                cx.add(i, part)?;
            }
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        self.spec.flops(2, inputs)
    }
}

/// Inputs `q`, `k`, `v`, `segments`, `o`, `lse`, `d_o`; outputs `d_q`, `d_k`, `d_v`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionBackward {
    /// As in the forward op.
    pub spec: AttentionSpec,
}

impl OpRule for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 7)?;
        check(self.name(), &self.spec, inputs)?;
        if inputs[4] != inputs[0] || inputs[6] != inputs[0] {
            return Err(Error::shape(self.name(), "o and d_o must have q's type", inputs));
        }
        let q = &inputs[0].shape;
        if inputs[3].shape.dims() != &q[..1] || inputs[5].shape.dims() != [q[1].clone(), q[0].clone()] {
            return Err(Error::shape(self.name(), "takes segments [n] and a log-sum-exp [heads, n]", inputs));
        }
        Ok(inputs[..3].to_vec())
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let [q, k, v, _, o, lse, d_o] = [0, 1, 2, 3, 4, 5, 6].map(|i| &cx.input(i).data);
        let heads = Heads::of(cx);
        let run = runs(&cx.whole(3));
        let (mut d_q, mut d_k, mut d_v) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for h in 0..heads.q {
            for i in 0..heads.n {
                let at = heads.q_at(h, i);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).take(heads.d).map(|(a, b)| a * b).sum::<f64>();
                let delta = dot(&o[at..], &d_o[at..]);
                for j in visible(&self.spec, &run, i) {
                    let to = heads.k_at(h, j);
                    let score = self.spec.score(cx, &heads, h, i, j);
                    let p = (score - lse[h * heads.n + i]).exp();
                    let bend = self.spec.softcap.map_or(1.0, |c| 1.0 - (score / c.0).powi(2));
                    let d_s = p * (dot(&d_o[at..], &v[to..]) - delta) * bend * self.spec.scale.0;
                    for c in 0..heads.d {
                        d_q[at + c] += d_s * k[to + c];
                        d_k[to + c] += d_s * q[at + c];
                        d_v[to + c] += p * d_o[at + c];
                    }
                }
            }
        }
        [d_q, d_k, d_v].into_iter().enumerate().map(|(i, d)| Ok(Tensor::new(cx.shape(i)?, d))).collect()
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        self.spec.flops(5, inputs)
    }
}

/// Writes `k` and `v` rows into the cache at (slot, position), then attends to everything up to each row's own position in its
/// slot. Inputs `q`, `k`, `v`, `slots [n]`, `positions [n]`. Both caches are states `[slots, capacity, kv, d]`; the op reads and
/// writes them in place, so it counts as an effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CachedAttention {
    /// Scale, cap and mask; always causal.
    pub spec: AttentionSpec,
    /// Keys.
    pub k_cache: StateId,
    /// Values.
    pub v_cache: StateId,
}

impl OpRule for CachedAttention {
    fn name(&self) -> &'static str {
        "cached-attention"
    }
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 5)?;
        check(self.name(), &self.spec, inputs)?;
        if !self.spec.causal {
            return Err(Error::attr(self.name(), "attention over a cache is causal"));
        }
        for state in [self.k_cache, self.v_cache] {
            let cache = g.states().get(state.index()).ok_or_else(|| Error::attr(self.name(), "names another graph's cache"))?;
            let cache = &cache.ty.shape;
            if cache.rank() != 4 || cache[2..] != inputs[1].shape[1..] {
                return Err(Error::shape(self.name(), format!("the cache {cache} does not hold these keys"), inputs));
            }
        }
        if inputs[3..].iter().any(|t| !t.dtype.is_int() || t.shape.dims() != &inputs[0].shape[..1]) {
            return Err(Error::shape(self.name(), "takes whole-number slots [n] and positions [n]", inputs));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let heads = Heads::of(cx);
        let (q, slots, positions) = (cx.input(0), cx.whole(3), cx.whole(4));
        for (input, cache) in [(1, self.k_cache), (2, self.v_cache)] {
            cx.with_cache(cache, |cache| {
                let width = heads.kv * heads.d;
                for (i, (&slot, &position)) in slots.iter().zip(&positions).enumerate() {
                    let slot = cx.index(slot, cache.shape[0], "slot")?;
                    let position = cx.index(position, cache.shape[1], "position")?;
                    let to = (slot * cache.shape[1] + position) * width;
                    cache.data[to..][..width].copy_from_slice(&cx.input(input).data[i * width..][..width]);
                }
                Ok(())
            })?;
        }
        let k = cx.with_cache(self.k_cache, |k| Ok(k.clone()))?;
        let v = cx.with_cache(self.v_cache, |v| Ok(v.clone()))?;
        let mut o = vec![0.0; q.data.len()];
        for i in 0..heads.n {
            let (slot, last) = (slots[i] as usize, positions[i] as usize);
            let first = self.spec.window.map_or(0, |w| (last + 1).saturating_sub(w as usize));
            for h in 0..heads.q {
                let at = |j: usize| heads.k_at(h, slot * k.shape[1] + j);
                let row = &q.data[heads.q_at(h, i)..][..heads.d];
                let scores: Vec<f64> = (first..=last).map(|j| self.spec.of_rows(row, &k.data[at(j)..])).collect();
                let sum = ReduceOp::LogSumExp.eval(&scores);
                let o = &mut o[heads.q_at(h, i)..][..heads.d];
                for (j, s) in (first..=last).zip(scores) {
                    o.iter_mut().zip(&v.data[at(j)..]).for_each(|(o, v)| *o += (s - sum).exp() * v);
                }
            }
        }
        cx.one(o)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        // Every row over a full cache.
        count(4, inputs[0].shape.iter().chain([&Dim::symbol(SymbolId::CAPACITY)]))
    }
}

impl AttentionSpec {
    /// Score of a query row and a key row.
    fn of_rows(&self, q: &[f64], k: &[f64]) -> f64 {
        let score = self.scale.0 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
        self.softcap.map_or(score, |c| c.0 * (score / c.0).tanh())
    }

    /// Score of query `i` and key `j` of inputs 0 and 1 under head `h`.
    fn score(&self, cx: &Eval<'_>, heads: &Heads, h: usize, i: usize, j: usize) -> f64 {
        self.of_rows(&cx.input(0).data[heads.q_at(h, i)..][..heads.d], &cx.input(1).data[heads.k_at(h, j)..])
    }

    /// `products` products of queries and keys, as if all tokens were one sequence; a causal mask halves it.
    fn flops(&self, products: u64, inputs: &[Type]) -> Result<Dim> {
        let each = if self.causal { 1 } else { 2 };
        count(products * each, inputs[0].shape.iter().chain(&inputs[0].shape[..1]))
    }
}

/// Sizes and offsets of queries and keys.
struct Heads {
    n: usize,
    q: usize,
    kv: usize,
    d: usize,
}

impl Heads {
    fn of(cx: &Eval<'_>) -> Heads {
        let q = &cx.input(0).shape;
        Heads { n: q[0], q: q[1], kv: cx.input(1).shape[1], d: q[2] }
    }

    fn q_at(&self, h: usize, i: usize) -> usize {
        (i * self.q + h) * self.d
    }

    /// Query heads share key heads in groups of neighbours.
    fn k_at(&self, h: usize, j: usize) -> usize {
        (j * self.kv + h / (self.q / self.kv)) * self.d
    }
}

/// The run of equal segment numbers that each token is in.
fn runs(segments: &[i64]) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut out = Vec::with_capacity(segments.len());
    for run in segments.chunk_by(|a, b| a == b) {
        out.resize(start + run.len(), start..start + run.len());
        start += run.len();
    }
    out
}

/// Keys that token `i` sees.
fn visible(spec: &AttentionSpec, runs: &[Range<usize>], i: usize) -> Range<usize> {
    let run = &runs[i];
    let reach = spec.window.map_or(usize::MAX, |w| w as usize);
    let start = run.start.max((i + 1).saturating_sub(reach));
    start..if spec.causal { i + 1 } else { run.end.min(i.saturating_add(reach)) }
}
