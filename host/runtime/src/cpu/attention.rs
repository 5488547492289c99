//! Attention over packed segments, its gradients, and attention over a cache.

use swift_graph::op::{AttentionSpec, CachedAttention};
use swift_graph::{DType, Type};
use swift_kernels::attention::{self, CacheFormat, Gradients, Inputs, MAX_HEAD_DIM, Outside, PAGE, Saved, Spec, Step};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::{Error, Result};

/// Sizes that all three share, and the number of tokens.
fn spec(op: &AttentionSpec, p: &Prepare<'_, '_>) -> Result<(Spec, usize)> {
    let (q, v) = (p.dims(0)?, p.dims(2)?);
    if let Some(size) = [q[2], v[2]].into_iter().find(|&size| size > MAX_HEAD_DIM) {
        return Err(p.unsupported(format!("head size {size} is above {MAX_HEAD_DIM}")));
    }
    let spec = Spec {
        heads: q[1],
        kv_heads: v[1],
        head_dim: q[2],
        value_dim: v[2],
        scale: op.scale.0 as f32,
        causal: op.causal,
        window: op.window.map(|w| w as usize),
        chunk: op.chunk.map(|c| c as usize),
        pinned: op.pinned as usize,
        softcap: op.softcap.map(|c| c.0 as f32),
    };
    Ok((spec, q[0]))
}

/// Queries, keys, values, the segments of tokens, and what is added to the scores.
#[derive(Clone, Copy, Debug)]
struct Operands {
    q: Ref,
    k: Ref,
    v: Ref,
    segments: Ref,
    sinks: Option<Ref>,
    bias: Option<Ref>,
}

impl Operands {
    /// Sinks and bias are the inputs from `more` on.
    fn of(op: &AttentionSpec, more: usize, p: &mut Prepare<'_, '_>) -> Result<Operands> {
        let sinks = op.sinks.then(|| p.input(more)).transpose()?;
        let bias = op.bias.then(|| p.input(more + usize::from(op.sinks))).transpose()?;
        Ok(Operands { q: p.input(0)?, k: p.input(1)?, v: p.input(2)?, segments: p.input(3)?, sinks, bias })
    }

    fn of_memory<'a>(&self, m: &'a Memory<'_>) -> Inputs<'a> {
        Inputs {
            q: m.f32(self.q),
            k: m.f32(self.k),
            v: m.f32(self.v),
            segments: m.i32(self.segments),
            sinks: self.sinks.map(|r| m.f32(r)),
            bias: self.bias.map(|r| m.f32(r)),
        }
    }
}

/// Attention of packed segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    spec: Spec,
    x: Operands,
    o: Ref,
    lse: Ref,
}

impl Attention {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        attention::forward(m.pool, &self.spec, &self.x.of_memory(m), m.f32_mut(self.o), m.f32_mut(self.lse));
        Ok(())
    }
}

pub(super) fn forward(op: &AttentionSpec, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, _) = spec(op, p)?;
    let x = Operands::of(op, 4, p)?;
    Ok(Kernel::Attention(Attention { spec, x, o: p.output(0)?, lse: p.output(1)? }))
}

/// Gradients in queries, keys and values, and in sinks and bias if somebody reads them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionGradient {
    forward: Attention,
    d_o: Ref,
    d_q: Ref,
    d_k: Ref,
    d_v: Ref,
    d_sinks: Option<Ref>,
    d_bias: Option<Ref>,
}

impl AttentionGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let Attention { spec, x, o, lse } = &self.forward;
        let saved = Saved { o: m.f32(*o), lse: m.f32(*lse), d_o: m.f32(self.d_o) };
        let gradients = Gradients {
            d_q: m.f32_mut(self.d_q),
            d_k: m.f32_mut(self.d_k),
            d_v: m.f32_mut(self.d_v),
            d_sinks: self.d_sinks.map(|r| m.f32_mut(r)),
            d_bias: self.d_bias.map(|r| m.f32_mut(r)),
        };
        attention::backward(m.pool, spec, &x.of_memory(m), &saved, gradients);
        Ok(())
    }
}

pub(super) fn backward(op: &AttentionSpec, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, _) = spec(op, p)?;
    let x = Operands::of(op, 7, p)?;
    let forward = Attention { spec, x, o: p.input(4)?, lse: p.input(5)? };
    let (d_o, d_q, d_k, d_v) = (p.input(6)?, p.output(0)?, p.output(1)?, p.output(2)?);
    let mut further = 3;
    let mut output = |there: bool, p: &mut Prepare<'_, '_>| {
        further += usize::from(there);
        if there { p.wanted_output(further - 1) } else { Ok(None) }
    };
    let d_sinks = output(op.sinks, p)?;
    let d_bias = output(op.bias, p)?;
    Ok(Kernel::AttentionGradient(AttentionGradient { forward, d_o, d_q, d_k, d_v, d_sinks, d_bias }))
}

const _: () = assert!(PAGE as u64 == CachedAttention::PAGE, "graph and kernels agree on pages");

/// How a cache of a type is stored.
pub(crate) fn cache_format(dtype: DType) -> CacheFormat {
    match dtype {
        DType::F16 => CacheFormat::F16,
        DType::S8 => CacheFormat::Int8,
        _ => CacheFormat::F32,
    }
}

/// Elements of four bytes of a cache `[pages, PAGE, heads, size]`.
pub(crate) fn cache_words(dtype: DType, shape: &[usize]) -> Option<usize> {
    let &[pages, page, heads, size] = shape else { return None };
    (page == PAGE && size <= MAX_HEAD_DIM).then_some(())?;
    cache_format(dtype).head_words(size).checked_mul(heads)?.checked_mul(pages)
}

/// New tokens are written to the cache, then attend to their sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheAttention {
    spec: Spec,
    format: CacheFormat,
    columns: usize,
    q: Ref,
    k: Ref,
    v: Ref,
    slots: Ref,
    positions: Ref,
    table: Ref,
    sinks: Option<Ref>,
    k_cache: Ref,
    v_cache: Ref,
    o: Ref,
}

impl CacheAttention {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let step = Step {
            q: m.f32(self.q),
            k: m.f32(self.k),
            v: m.f32(self.v),
            slots: m.i32(self.slots),
            positions: m.i32(self.positions),
            table: m.i32(self.table),
            columns: self.columns,
            sinks: self.sinks.map(|r| m.f32(r)),
        };
        let (k_cache, v_cache, o) = (m.bits_mut(self.k_cache), m.bits_mut(self.v_cache), m.f32_mut(self.o));
        let done = attention::cached(m.pool, &self.spec, &step, self.format, k_cache, v_cache, o);
        done.map_err(|Outside { what, value, at, limit }| Error::Index { op: "cached-attention", what, value, at, limit })
    }
}

pub(super) fn cached(op: &CachedAttention, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, _) = spec(&op.spec, p)?;
    let g = &p.scope.plan.graph;
    let [keys, values] = [op.k_cache, op.v_cache].map(|id| &g.states()[id.index()]);
    let pages = |ty: &Type| Ok::<_, Error>(ty.shape.eval(p.scope.bindings)?[0]);
    if pages(&keys.ty)? != pages(&values.ty)? || keys.ty.dtype != values.ty.dtype || op.k_cache == op.v_cache {
        return Err(Error::tensor("state", &values.name, "must be a cache like that of the keys"));
    }
    let (format, columns) = (cache_format(keys.ty.dtype), p.dims(5)?[1]);
    let sinks = op.spec.sinks.then(|| p.input(6)).transpose()?;
    Ok(Kernel::CacheAttention(CacheAttention {
        spec,
        format,
        columns,
        q: p.input(0)?,
        k: p.input(1)?,
        v: p.input(2)?,
        slots: p.input(3)?,
        positions: p.input(4)?,
        table: p.input(5)?,
        sinks,
        k_cache: p.state(op.k_cache),
        v_cache: p.state(op.v_cache),
        o: p.output(0)?,
    }))
}
