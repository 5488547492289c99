//! Attention over packed segments, its gradients, and attention over a cache.

use swift_graph::op::{AttentionSpec, CachedAttention};
use swift_kernels::attention::{self, Spec};

use super::Kernel;
use super::gather::check;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::{Error, Result};

/// Sizes that all three share.
fn spec(op: &AttentionSpec, p: &Prepare<'_, '_>) -> Result<(Spec, usize)> {
    let (q, k) = (p.dims(0)?, p.dims(1)?);
    let head_dim = q[2];
    if !(4..=256).contains(&head_dim) || !head_dim.is_multiple_of(4) {
        return Err(p.unsupported(format!("head size {head_dim} is not a multiple of 4 up to 256")));
    }
    let spec = Spec {
        heads: q[1],
        kv_heads: k[1],
        head_dim,
        scale: op.scale.0 as f32,
        causal: op.causal,
        window: op.window.map(|w| w as usize),
        softcap: op.softcap.map(|c| c.0 as f32),
    };
    Ok((spec, q[0]))
}

/// Queries, keys, values and the segments of tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    spec: Spec,
    n: usize,
    q: Ref,
    k: Ref,
    v: Ref,
    segments: Ref,
    o: Ref,
    lse: Ref,
}

impl Attention {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (q, k, v) = (m.f32(self.q), m.f32(self.k), m.f32(self.v));
        let (o, lse) = (m.f32_mut(self.o), m.f32_mut(self.lse));
        attention::forward(m.pool, &self.spec, self.n, q, k, v, m.i32(self.segments), o, lse);
        Ok(())
    }
}

pub(super) fn forward(op: &AttentionSpec, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, n) = spec(op, p)?;
    let (q, k, v, segments) = (p.input(0)?, p.input(1)?, p.input(2)?, p.input(3)?);
    Ok(Kernel::Attention(Attention { spec, n, q, k, v, segments, o: p.output(0)?, lse: p.output(1)? }))
}

/// Gradients in queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionGradient {
    forward: Attention,
    d_o: Ref,
    d_q: Ref,
    d_k: Ref,
    d_v: Ref,
}

impl AttentionGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let f = &self.forward;
        let (q, k, v, o, lse) = (m.f32(f.q), m.f32(f.k), m.f32(f.v), m.f32(f.o), m.f32(f.lse));
        let (d_q, d_k, d_v) = (m.f32_mut(self.d_q), m.f32_mut(self.d_k), m.f32_mut(self.d_v));
        attention::backward(m.pool, &f.spec, f.n, q, k, v, m.i32(f.segments), o, lse, m.f32(self.d_o), d_q, d_k, d_v);
        Ok(())
    }
}

pub(super) fn backward(op: &AttentionSpec, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, n) = spec(op, p)?;
    let (q, k, v, segments, o, lse) = (p.input(0)?, p.input(1)?, p.input(2)?, p.input(3)?, p.input(4)?, p.input(5)?);
    let forward = Attention { spec, n, q, k, v, segments, o, lse };
    let (d_o, d_q, d_k, d_v) = (p.input(6)?, p.output(0)?, p.output(1)?, p.output(2)?);
    Ok(Kernel::AttentionGradient(AttentionGradient { forward, d_o, d_q, d_k, d_v }))
}

/// New tokens are written to the cache at (slot, position), then attend to their slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheAttention {
    spec: Spec,
    n: usize,
    slot_count: usize,
    capacity: usize,
    q: Ref,
    k: Ref,
    v: Ref,
    slots: Ref,
    positions: Ref,
    k_cache: Ref,
    v_cache: Ref,
    o: Ref,
}

impl CacheAttention {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (slots, positions) = (m.i32(self.slots), m.i32(self.positions));
        check("cached-attention", "cache slot", slots, self.slot_count, false)?;
        check("cached-attention", "cache position", positions, self.capacity, false)?;
        let (q, k, v) = (m.f32(self.q), m.f32(self.k), m.f32(self.v));
        let (k_cache, v_cache, o) = (m.f32_mut(self.k_cache), m.f32_mut(self.v_cache), m.f32_mut(self.o));
        attention::cached(m.pool, &self.spec, self.n, self.capacity, slots, positions, q, k, v, k_cache, v_cache, o);
        Ok(())
    }
}

pub(super) fn cached(op: &CachedAttention, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (spec, n) = spec(&op.spec, p)?;
    let g = &p.scope.plan.graph;
    let cache = g.states()[op.k_cache.index()].ty.shape.eval(p.scope.bindings)?;
    let values = g.states()[op.v_cache.index()].ty.shape.eval(p.scope.bindings)?;
    if cache != values || op.k_cache == op.v_cache {
        return Err(Error::tensor("state", &g.states()[op.v_cache.index()].name, "must be a cache like that of the keys"));
    }
    let (q, k, v, slots, positions) = (p.input(0)?, p.input(1)?, p.input(2)?, p.input(3)?, p.input(4)?);
    let (k_cache, v_cache, o) = (p.state(op.k_cache), p.state(op.v_cache), p.output(0)?);
    let (slot_count, capacity) = (cache[0], cache[1]);
    Ok(Kernel::CacheAttention(CacheAttention { spec, n, slot_count, capacity, q, k, v, slots, positions, k_cache, v_cache, o }))
}
