//! Composites: ops that become more than one node, or need the session's own inputs.

use swift_graph::op::{self, AttentionSpec, BinaryOp, ReduceOp, RopeLayout, UnaryOp};
use swift_graph::{DType, Dim, Float, NodeId, Shape, StateId, SymbolId, Type};
use wasmtime::component::Resource;

use super::{Cache, Fault, Trace, Traced};
use crate::bindings::tensor::graph::{AttnSpec, ConvSpec, KvCache, Param, RopeLayout as WitRopeLayout, RopeSpec, Value};
use crate::bindings::tensor::types::{Attr, AttrValue, ErrorCode};

/// `s32[n]`, the type of ids, positions and segments.
pub(super) fn per_token() -> Type {
    Type::new(DType::S32, vec![Dim::symbol(SymbolId::TOKENS)])
}

pub(super) fn positive(op: &str, what: &str, value: f32) -> Traced<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Fault::new(ErrorCode::BadConfig, format!("{op}: {what} is {value}, but must be positive and finite")))
    }
}

/// `x·Wᵀ + b`; also the nodes of x, weight and bias, for sites.
pub(super) fn linear(
    trace: &mut Trace,
    w: &Resource<Param>,
    bias: Option<&Resource<Param>>,
    x: &Resource<Value>,
) -> Traced<(NodeId, NodeId, NodeId, Option<NodeId>)> {
    let x = trace.node(x)?;
    let w = trace.param_node(w)?;
    let bias = bias.map(|b| trace.param_node(b)).transpose()?;
    let mut inputs = vec![x, w];
    inputs.extend(bias);
    let node = trace.graph.push(op::Linear { bias: bias.is_some(), ..op::Linear::plain() }, &inputs)?;
    Ok((node, x, w, bias))
}

/// Rows of x by the matrices that they choose; also the nodes of x and weight, for sites.
pub(super) fn grouped_linear(
    trace: &mut Trace,
    w: &Resource<Param>,
    x: &Resource<Value>,
    experts: &Resource<Value>,
) -> Traced<(NodeId, NodeId, NodeId)> {
    let (x, w, experts) = (trace.node(x)?, trace.param_node(w)?, trace.node(experts)?);
    let node = trace.graph.push(op::GroupedLinear, &[x, w, experts])?;
    Ok((node, x, w))
}

/// Convolution of x with filters w; also the nodes of x, weight and bias, for sites.
pub(super) fn conv(
    trace: &mut Trace,
    w: &Resource<Param>,
    bias: Option<&Resource<Param>>,
    x: &Resource<Value>,
    spec: ConvSpec,
) -> Traced<(NodeId, NodeId, NodeId, Option<NodeId>)> {
    let x = trace.node(x)?;
    let w = trace.param_node(w)?;
    let bias = bias.map(|b| trace.param_node(b)).transpose()?;
    let wide = |numbers: Vec<u32>| numbers.into_iter().map(u64::from).collect();
    let spec = op::ConvSpec {
        stride: wide(spec.stride),
        pad_lo: wide(spec.pad_lo),
        pad_hi: wide(spec.pad_hi),
        dilation: wide(spec.dilation),
        groups: spec.groups.into(),
    };
    // Filters are small beside images, so kernels take them as floats.
    let filters = trace.graph.push(op::Read, &[w])?;
    let mut inputs = vec![x, filters];
    inputs.extend(bias);
    let node = trace.graph.push(op::Conv { spec, bias: bias.is_some() }, &inputs)?;
    Ok((node, x, w, bias))
}

/// The largest of the last axis, read at their places, and these places.
pub(super) fn top_k(trace: &mut Trace, x: &Resource<Value>, k: u32) -> Traced<(Resource<Value>, Resource<Value>)> {
    let x = trace.node(x)?;
    let places = trace.graph.push(op::TopK { k: k.into() }, &[x])?;
    let values = trace.graph.push(op::GatherLast, &[x, places])?;
    Ok((trace.value(values), trace.value(places)))
}

/// Softmax over any axis: other axes than the last are brought there and back.
pub(super) fn softmax(trace: &mut Trace, x: NodeId, axis: usize) -> Traced<Resource<Value>> {
    let rank = trace.graph.ty(x).shape.rank();
    if axis + 1 == rank {
        return trace.push(op::Softmax, &[x]);
    }
    // Exchanging two axes is its own inverse.
    let mut axes: Vec<usize> = (0..rank).collect();
    axes.swap(axis, rank - 1);
    let turned = trace.graph.push(op::Permute { axes: axes.clone() }, &[x])?;
    let soft = trace.graph.push(op::Softmax, &[turned])?;
    trace.push(op::Permute { axes }, &[soft])
}

/// Layer norm (Ba et al. 2016) from primitives: `(x - mean) / sqrt(var + eps) · w + b` over the last axis.
pub(super) fn layer_norm(
    trace: &mut Trace,
    x: &Resource<Value>,
    w: Option<&Resource<Param>>,
    bias: Option<&Resource<Param>>,
    eps: f32,
) -> Traced<Resource<Value>> {
    positive("layer-norm", "eps", eps)?;
    let x = trace.node(x)?;
    let w = w.map(|w| trace.param_node(w)).transpose()?;
    let bias = bias.map(|b| trace.param_node(b)).transpose()?;
    let g = &mut trace.graph;
    let ty = g.ty(x).clone();
    let Some(d) = ty.shape.last().cloned() else {
        return Err(Fault::new(ErrorCode::BadShape, "layer-norm: needs an axis"));
    };
    for (name, node) in [("weight", w), ("bias", bias)] {
        if let Some(node) = node.filter(|&n| g.ty(n).shape.dims() != std::slice::from_ref(&d)) {
            return Err(Fault::new(ErrorCode::BadShape, format!("layer-norm: the {name} must be [{d}]; got {}", g.ty(node))));
        }
    }
    let axis = ty.shape.rank() - 1;
    let mean = g.reduce(ReduceOp::Mean, x, &[axis], true)?;
    let centred = g.sub(x, mean)?;
    let square = g.mul(centred, centred)?;
    let variance = g.reduce(ReduceOp::Mean, square, &[axis], true)?;
    let eps = g.scalar(f64::from(eps), ty.dtype)?;
    let variance = g.add(variance, eps)?;
    let inverse = g.unary(UnaryOp::Rsqrt, variance)?;
    let mut y = g.mul(centred, inverse)?;
    for (node, f) in [(w, BinaryOp::Mul), (bias, BinaryOp::Add)] {
        if let Some(node) = node {
            let mut read = g.push(op::Read, &[node])?;
            if ty.dtype != DType::F32 {
                read = g.push(op::Cast(ty.dtype), &[read])?;
            }
            y = g.binary(f, y, read)?;
        }
    }
    Ok(trace.value(y))
}

pub(super) fn rope(spec: &RopeSpec) -> Traced<op::Rope> {
    positive("rope", "attn-scale", spec.attn_scale)?;
    if spec.inv_freq.is_empty() || spec.inv_freq.iter().any(|f| !f.is_finite()) {
        return Err(Fault::new(ErrorCode::BadConfig, "rope: inv-freq must be a list of finite numbers, one per pair"));
    }
    Ok(op::Rope {
        inv_freq: spec.inv_freq.iter().map(|&f| Float::from(f)).collect(),
        layout: match spec.layout {
            WitRopeLayout::Halves => RopeLayout::Halves,
            WitRopeLayout::Interleaved => RopeLayout::Interleaved,
        },
        attn_scale: spec.attn_scale.into(),
        inverse: false,
        sections: spec.sections.as_slice().into(),
    })
}

/// Arguments of `attention`.
pub(super) struct Attend {
    pub(super) q: Resource<Value>,
    pub(super) k: Resource<Value>,
    pub(super) v: Resource<Value>,
    pub(super) spec: AttnSpec,
    pub(super) bias: Option<Resource<Value>>,
    pub(super) cache: Option<Resource<KvCache>>,
}

/// Attention over the session's segments, or over a cache at the session's slots and positions.
pub(super) fn attention(trace: &mut Trace, a: &Attend) -> Traced<Resource<Value>> {
    let mask = &a.spec.mask;
    for (present, what) in [(!mask.by_segment, "attention across segments"), (a.spec.dropout != 0.0, "attention with dropout")] {
        if present {
            return Err(Fault::unsupported(what));
        }
    }
    let bias = a.bias.as_ref().map(|b| trace.node(b)).transpose()?;
    // One number a head is the score of a key without value, anything else is added to the scores.
    let sinks = bias.is_some_and(|b| trace.graph.ty(b).shape.rank() == 1);
    let spec = AttentionSpec {
        scale: a.spec.scale.into(),
        softcap: a.spec.softcap.map(Float::from),
        causal: mask.causal,
        window: mask.window,
        chunk: mask.chunk,
        pinned: mask.sinks,
        sinks,
        bias: bias.is_some() && !sinks,
    };
    if spec.bias && a.cache.is_some() {
        return Err(Fault::unsupported("attention with an additive bias over a cache"));
    }
    let (q, k, v) = (trace.node(&a.q)?, trace.node(&a.k)?, trace.node(&a.v)?);
    // In cached modes `segments` holds the cache slot of each token.
    let segments = trace.graph.input("segments", per_token())?;
    match &a.cache {
        None => {
            let inputs: Vec<NodeId> = [q, k, v, segments].into_iter().chain(bias).collect();
            trace.push(op::Attention { spec }, &inputs)
        }
        Some(cache) => {
            let (k_cache, v_cache) = cache_states(trace, cache, k, v)?;
            let positions = trace.graph.input("positions", per_token())?;
            // Whoever generates gives pages of the cache to sequences.
            let pages = trace.graph.input("pages", op::CachedAttention::table())?;
            let inputs: Vec<NodeId> = [q, k, v, segments, positions, pages].into_iter().chain(bias).collect();
            trace.push(op::CachedAttention { spec, k_cache, v_cache }, &inputs)
        }
    }
}

/// The states of a layer's keys and values, of which the plan tells the sizes of the keys.
fn cache_states(trace: &mut Trace, cache: &Resource<KvCache>, k: NodeId, v: NodeId) -> Traced<(StateId, StateId)> {
    let Cache { layer, kv_heads, head_dim } = trace.cache(cache)?;
    let sizes = |node: NodeId| trace.graph.ty(node).shape.iter().skip(1).cloned().collect::<Vec<Dim>>();
    let (keys, values) = (sizes(k), sizes(v));
    if keys != [Dim::fixed(kv_heads), Dim::fixed(head_dim)] {
        let message = format!("attention: k is {}, the plan's cache of layer {layer} {kv_heads} x {head_dim}", trace.graph.ty(k));
        return Err(Fault::new(ErrorCode::BadShape, message));
    }
    let [heads, value_dim] = &values[..] else {
        return Err(Fault::new(ErrorCode::BadShape, format!("attention: v is {}, not [n, kv, e]", trace.graph.ty(v))));
    };
    let (heads, value_dim) = (heads.clone(), value_dim.clone());
    let mut state = |which: &str, size: Dim| {
        let shape = op::CachedAttention::cache_shape(heads.clone(), size);
        trace.graph.declare_state(&format!("cache.{which}.{layer}"), Type::f32(shape))
    };
    Ok((state("k", Dim::fixed(head_dim))?, state("v", value_dim)?))
}

/// Dropout keyed by the run's `rng` input; the identity outside training.
pub(super) fn dropout(trace: &mut Trace, inputs: &[Resource<Value>], attrs: &[Attr]) -> Traced<Resource<Value>> {
    let [x] = inputs else {
        return Err(Fault::new(ErrorCode::BadShape, format!("dropout: takes one value; got {}", inputs.len())));
    };
    let rate = match attrs {
        [Attr { key, val: AttrValue::Float(rate) }] if key == "rate" => *rate,
        _ => return Err(Fault::new(ErrorCode::BadConfig, "dropout: takes exactly the attribute rate: float")),
    };
    let x = trace.node(x)?;
    if !(0.0..1.0).contains(&rate) {
        return Err(Fault::new(ErrorCode::BadConfig, format!("dropout: rate is {rate}, but must be in 0..1")));
    }
    if !trace.training || rate == 0.0 {
        return Ok(trace.value(x));
    }
    let key = trace.graph.input("rng", Type::new(DType::S32, Shape::fixed(&[2])))?;
    let stream = trace.dropouts;
    trace.dropouts += 1;
    trace.push(op::Dropout { rate: Float(rate), stream }, &[x, key])
}
