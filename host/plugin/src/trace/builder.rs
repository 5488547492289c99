//! `builder`: every method checks its handles, appends nodes, and hands out their index. Composites with more than a line to say are
//! in `composite.rs`.

use std::sync::Arc;

use half::{bf16, f16};
use swift_graph::op::{self, ConstantData};
use swift_graph::{DType, Dim, DimOp, Float, Shape, SymbolInfo, Type};
use wasmtime::component::Resource;

use super::composite::{self, Attend};
use super::{Ctx, Fault, Traced};
use crate::bindings::tensor::graph::{
    AttnSpec, BinaryOp, Builder, ConvSpec, DimOp as WitDimOp, Dtype, HostBuilder, KvCache, Param, ReduceOp, RopeSpec, UnaryOp,
    Value,
};
use crate::bindings::tensor::types::{Attr, Dim as WitDim, ErrorCode};
use crate::decl::dtype_in;
use crate::limits::LimitHit;

/// What `has-op` says yes to, version 1.
const OPS: &[&str] = &[
    "scalar",
    "constant",
    "iota",
    "full",
    "unary",
    "binary",
    "select",
    "cast",
    "reshape",
    "permute",
    "expand",
    "slice",
    "concat",
    "pad",
    "reduce",
    "softmax",
    "top-k",
    "gather-last",
    "scatter-last",
    "gather-rows",
    "scatter-rows",
    "segment-reduce",
    "matmul",
    "embed",
    "linear",
    "grouped-linear",
    "rms-norm",
    "layer-norm",
    "rope",
    "attention",
    "conv",
    "stop-grad",
    "remat",
    "dropout",
    "head.hidden",
    "head.token-logprobs",
    "head.cross-entropy",
    "head.entropy",
    "head.logit-mean",
    "head.divergence",
    "head.logits",
];

type Out = Traced<Resource<Value>>;

impl HostBuilder for Ctx {
    fn push_scope(&mut self, g: Resource<Builder>, name: String) -> wasmtime::Result<()> {
        self.name("scope name", &name).map_err(Fault::into_trap)?;
        let trace = self.trace().map_err(Fault::into_trap)?;
        trace.builder(&g).map_err(Fault::into_trap)?;
        trace.graph.push_scope(&name).map_err(|e| Fault::from(e).into_trap())?;
        trace.depth += 1;
        Ok(())
    }

    fn pop_scope(&mut self, g: Resource<Builder>) -> wasmtime::Result<()> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        trace.builder(&g).map_err(Fault::into_trap)?;
        if trace.depth == 0 {
            return Err(wasmtime::Error::msg("pop-scope without a push-scope before it"));
        }
        trace.depth -= 1;
        trace.graph.pop_scope();
        Ok(())
    }

    fn dim_symbol(&mut self, g: Resource<Builder>, name: String, lo: u64, hi: Option<u64>, multiple_of: u64) -> Traced<WitDim> {
        self.name("symbol name", &name)?;
        let (symbols, dims) = (self.limits.symbols, self.limits.dims);
        let trace = self.trace()?;
        trace.builder(&g)?;
        if multiple_of == 0 || hi.is_some_and(|hi| hi < lo) {
            let message = format!("symbol `{name}`: {lo}..={hi:?} in steps of {multiple_of} holds no value");
            return Err(Fault::new(ErrorCode::BadShape, message));
        }
        LimitHit::check("symbols", symbols, trace.graph.symbols.len() as u64 + 1, || format!("symbol `{name}`"))?;
        let id = trace.graph.symbols.add(SymbolInfo { name, lo, hi, multiple_of });
        trace.dim_out(&Dim::symbol(id), dims)
    }

    fn dim_expr(&mut self, g: Resource<Builder>, op: WitDimOp, a: WitDim, b: WitDim) -> Traced<WitDim> {
        let limit = self.limits.dims;
        let trace = self.trace()?;
        trace.builder(&g)?;
        let op = match op {
            WitDimOp::Add => DimOp::Add,
            WitDimOp::Sub => DimOp::Sub,
            WitDimOp::Mul => DimOp::Mul,
            WitDimOp::FloorDiv => DimOp::FloorDiv,
            WitDimOp::CeilDiv => DimOp::CeilDiv,
            WitDimOp::Mod => DimOp::Mod,
            WitDimOp::Min => DimOp::Min,
            WitDimOp::Max => DimOp::Max,
        };
        let dim = Dim::apply(op, &trace.dim_in(a)?, &trace.dim_in(b)?)?;
        trace.dim_out(&dim, limit)
    }

    fn has_op(&mut self, _: Resource<Builder>, name: String, version: u32) -> wasmtime::Result<bool> {
        Ok(version == 1 && OPS.contains(&name.as_str()))
    }

    fn scalar(&mut self, g: Resource<Builder>, v: f64, ty: Dtype) -> wasmtime::Result<Resource<Value>> {
        self.filled(&g, Vec::new(), v, ty).map_err(Fault::into_trap)
    }

    fn constant(&mut self, g: Resource<Builder>, shape: Vec<u64>, ty: Dtype, bytes: Vec<u8>) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let dtype = dtype_in(ty);
        let data = elements(dtype, &bytes)?;
        trace.push(op::Constant { dtype, shape, data }, &[])
    }

    fn iota(&mut self, g: Resource<Builder>, shape: Vec<WitDim>, axis: u32, ty: Dtype) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let ty = Type::new(dtype_in(ty), trace.shape_in(shape)?);
        trace.push(op::Iota { ty, axis: axis as usize }, &[])
    }

    fn full(&mut self, g: Resource<Builder>, shape: Vec<WitDim>, v: f64, ty: Dtype) -> Out {
        self.filled(&g, shape, v, ty)
    }

    fn unary(&mut self, g: Resource<Builder>, op: UnaryOp, x: Resource<Value>) -> Out {
        self.op(&g, op::Unary(unary_in(op)), &[&x])
    }

    fn binary(&mut self, g: Resource<Builder>, op: BinaryOp, a: Resource<Value>, b: Resource<Value>) -> Out {
        self.op(&g, op::Binary(binary_in(op)), &[&a, &b])
    }

    fn select(&mut self, g: Resource<Builder>, cond: Resource<Value>, a: Resource<Value>, b: Resource<Value>) -> Out {
        self.op(&g, op::Select, &[&cond, &a, &b])
    }

    fn cast(&mut self, g: Resource<Builder>, x: Resource<Value>, ty: Dtype) -> Out {
        self.op(&g, op::Cast(dtype_in(ty)), &[&x])
    }

    fn reshape(&mut self, g: Resource<Builder>, x: Resource<Value>, to: Vec<WitDim>) -> Out {
        let to = self.trace()?.shape_in(to)?;
        self.op(&g, op::Reshape { to }, &[&x])
    }

    fn permute(&mut self, g: Resource<Builder>, x: Resource<Value>, axes: Vec<u32>) -> Out {
        self.op(&g, op::Permute { axes: axes.into_iter().map(|a| a as usize).collect() }, &[&x])
    }

    fn expand(&mut self, g: Resource<Builder>, x: Resource<Value>, to: Vec<WitDim>) -> Out {
        let to = self.trace()?.shape_in(to)?;
        self.op(&g, op::Expand { to }, &[&x])
    }

    fn slice(&mut self, g: Resource<Builder>, x: Resource<Value>, axis: i32, start: WitDim, len: WitDim) -> Out {
        let trace = self.trace()?;
        let node = trace.node(&x)?;
        let slice = op::Slice { axis: trace.axis(node, axis, "slice")?, start: trace.dim_in(start)?, len: trace.dim_in(len)? };
        self.op(&g, slice, &[&x])
    }

    fn concat(&mut self, g: Resource<Builder>, xs: Vec<Resource<Value>>, axis: i32) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let nodes = trace.nodes(&xs)?;
        let first = *nodes.first().ok_or_else(|| Fault::new(ErrorCode::BadShape, "concat: takes at least one value"))?;
        let axis = trace.axis(first, axis, "concat")?;
        trace.push(op::Concat { axis }, &nodes)
    }

    fn pad(&mut self, g: Resource<Builder>, x: Resource<Value>, lo: Vec<u32>, hi: Vec<u32>, v: f64) -> Out {
        let wide = |sizes: Vec<u32>| sizes.into_iter().map(u64::from).collect();
        self.op(&g, op::Pad { lo: wide(lo), hi: wide(hi), value: Float(v) }, &[&x])
    }

    fn reduce(&mut self, g: Resource<Builder>, op: ReduceOp, x: Resource<Value>, axes: Vec<i32>, keep: bool) -> Out {
        let trace = self.trace()?;
        let node = trace.node(&x)?;
        let mut axes = axes.into_iter().map(|a| trace.axis(node, a, "reduce")).collect::<Traced<Vec<_>>>()?;
        axes.sort_unstable();
        self.op(&g, op::Reduce { op: reduce_in(op), axes, keep }, &[&x])
    }

    fn softmax(&mut self, g: Resource<Builder>, x: Resource<Value>, axis: i32) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let node = trace.node(&x)?;
        let axis = trace.axis(node, axis, "softmax")?;
        composite::softmax(trace, node, axis)
    }

    fn top_k(&mut self, g: Resource<Builder>, x: Resource<Value>, k: u32) -> Traced<(Resource<Value>, Resource<Value>)> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        composite::top_k(trace, &x, k)
    }

    fn gather_last(&mut self, g: Resource<Builder>, x: Resource<Value>, idx: Resource<Value>) -> Out {
        self.op(&g, op::GatherLast, &[&x, &idx])
    }

    fn scatter_last(&mut self, g: Resource<Builder>, x: Resource<Value>, idx: Resource<Value>, count: WitDim) -> Out {
        let count = self.trace()?.dim_in(count)?;
        self.op(&g, op::ScatterLast { count }, &[&x, &idx])
    }

    fn gather_rows(&mut self, g: Resource<Builder>, table: Resource<Value>, idx: Resource<Value>) -> Out {
        self.op(&g, op::GatherRows, &[&table, &idx])
    }

    fn scatter_rows(
        &mut self,
        g: Resource<Builder>,
        base: Resource<Value>,
        idx: Resource<Value>,
        rows: Resource<Value>,
        accumulate: bool,
    ) -> Out {
        self.op(&g, op::ScatterRows { accumulate }, &[&base, &idx, &rows])
    }

    fn segment_reduce(
        &mut self,
        g: Resource<Builder>,
        op: ReduceOp,
        x: Resource<Value>,
        segments: Resource<Value>,
        count: WitDim,
    ) -> Out {
        let count = self.trace()?.dim_in(count)?;
        self.op(&g, op::SegmentReduce { op: reduce_in(op), count }, &[&x, &segments])
    }

    fn matmul(&mut self, g: Resource<Builder>, a: Resource<Value>, b: Resource<Value>, transpose_b: bool) -> Out {
        self.op(&g, op::MatMul { transpose_a: false, transpose_b }, &[&a, &b])
    }

    fn embed(&mut self, g: Resource<Builder>, w: Resource<Param>, ids: Resource<Value>) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (w, ids) = (trace.param_node(&w)?, trace.node(&ids)?);
        trace.push(op::Embed, &[w, ids])
    }

    fn linear(&mut self, g: Resource<Builder>, w: Resource<Param>, bias: Option<Resource<Param>>, x: Resource<Value>) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (node, ..) = composite::linear(trace, &w, bias.as_ref(), &x)?;
        Ok(trace.value(node))
    }

    fn rms_norm(
        &mut self,
        g: Resource<Builder>,
        x: Resource<Value>,
        w: Option<Resource<Param>>,
        eps: f32,
        unit_offset: bool,
    ) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        composite::positive("rms-norm", "eps", eps)?;
        let mut inputs = vec![trace.node(&x)?];
        if let Some(w) = &w {
            inputs.push(trace.param_node(w)?);
        }
        trace.push(op::RmsNorm { eps: eps.into(), unit_offset, weight: w.is_some() }, &inputs)
    }

    fn layer_norm(
        &mut self,
        g: Resource<Builder>,
        x: Resource<Value>,
        w: Option<Resource<Param>>,
        bias: Option<Resource<Param>>,
        eps: f32,
    ) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        composite::layer_norm(trace, &x, w.as_ref(), bias.as_ref(), eps)
    }

    fn rope(&mut self, g: Resource<Builder>, x: Resource<Value>, positions: Resource<Value>, spec: RopeSpec) -> Out {
        let rope = composite::rope(&spec)?;
        self.op(&g, rope, &[&x, &positions])
    }

    fn attention(
        &mut self,
        g: Resource<Builder>,
        q: Resource<Value>,
        k: Resource<Value>,
        v: Resource<Value>,
        spec: AttnSpec,
        bias: Option<Resource<Value>>,
        cache: Option<Resource<KvCache>>,
    ) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        composite::attention(trace, &Attend { q, k, v, spec, bias, cache })
    }

    fn conv(
        &mut self,
        g: Resource<Builder>,
        x: Resource<Value>,
        w: Resource<Param>,
        bias: Option<Resource<Param>>,
        spec: ConvSpec,
    ) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (node, ..) = composite::conv(trace, &w, bias.as_ref(), &x, spec)?;
        Ok(trace.value(node))
    }

    fn grouped_linear(&mut self, g: Resource<Builder>, w: Resource<Param>, x: Resource<Value>, experts: Resource<Value>) -> Out {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (node, ..) = composite::grouped_linear(trace, &w, &x, &experts)?;
        Ok(trace.value(node))
    }

    fn stop_grad(&mut self, g: Resource<Builder>, x: Resource<Value>) -> Out {
        self.op(&g, op::StopGrad, &[&x])
    }

    fn remat(&mut self, g: Resource<Builder>, on: bool) -> wasmtime::Result<()> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        trace.builder(&g).map_err(Fault::into_trap)?;
        trace.graph.wish_recompute(Some(on)).map_err(|e| Fault::from(e).into_trap())
    }

    fn begin_region(&mut self, _: Resource<Builder>, _: Vec<(Vec<WitDim>, Dtype)>) -> Traced<Resource<Builder>> {
        Err(Fault::unsupported("begin-region"))
    }

    fn region_arg(&mut self, _: Resource<Builder>, _: u32) -> Out {
        Err(Fault::unsupported("region-arg"))
    }

    fn scan(
        &mut self,
        _: Resource<Builder>,
        _: Resource<Builder>,
        _: Vec<Resource<Value>>,
        _: Vec<Resource<Value>>,
        _: Vec<Resource<Value>>,
    ) -> Traced<Vec<Resource<Value>>> {
        Err(Fault::unsupported("scan"))
    }

    fn cond(
        &mut self,
        _: Resource<Builder>,
        _: Resource<Value>,
        _: Resource<Builder>,
        _: Vec<Resource<Value>>,
        _: Resource<Builder>,
        _: Vec<Resource<Value>>,
    ) -> Traced<Vec<Resource<Value>>> {
        Err(Fault::unsupported("cond"))
    }

    fn call(
        &mut self,
        g: Resource<Builder>,
        name: String,
        version: u32,
        inputs: Vec<Resource<Value>>,
        attrs: Vec<Attr>,
    ) -> Traced<Vec<Resource<Value>>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        match (name.as_str(), version) {
            ("dropout", 1) => Ok(vec![composite::dropout(trace, &inputs, &attrs)?]),
            _ => {
                let name: String = name.chars().take(80).collect();
                let message = format!("call: there is no op `{name}` of version {version}");
                Err(Fault::new(ErrorCode::UnsupportedOp, message).hint("this host registers: dropout 1"))
            }
        }
    }

    fn drop(&mut self, _: Resource<Builder>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl Ctx {
    fn op(&mut self, g: &Resource<Builder>, op: impl Into<op::Op>, inputs: &[&Resource<Value>]) -> Out {
        let trace = self.trace()?;
        trace.builder(g)?;
        let nodes = inputs.iter().map(|v| trace.node(v)).collect::<Traced<Vec<_>>>()?;
        trace.push(op, &nodes)
    }

    fn filled(&mut self, g: &Resource<Builder>, shape: Vec<WitDim>, v: f64, ty: Dtype) -> Out {
        let trace = self.trace()?;
        trace.builder(g)?;
        let shape: Shape = trace.shape_in(shape)?;
        trace.push(op::Full { ty: Type::new(dtype_in(ty), shape), value: Float(v) }, &[])
    }
}

/// Little-endian bytes as elements. Integers are kept in 32 bits and must fit.
fn elements(dtype: DType, bytes: &[u8]) -> Traced<ConstantData> {
    fn chunks<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Traced<Vec<T>> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        if !rest.is_empty() {
            let message = format!("constant: {} bytes are no whole number of {N}-byte elements", bytes.len());
            return Err(Fault::new(ErrorCode::BadShape, message));
        }
        Ok(chunks.iter().map(|c| read(*c)).collect())
    }
    let narrow = |values: Vec<i64>| -> Traced<ConstantData> {
        let narrow: Result<Vec<i32>, _> = values.into_iter().map(i32::try_from).collect();
        let narrow = narrow.map_err(|_| Fault::new(ErrorCode::BadDtype, "constant: an integer does not fit 32 bits"))?;
        Ok(ConstantData::Int(narrow.into()))
    };
    let float = |values: Vec<f32>| ConstantData::Float(Arc::from(values));
    match dtype {
        DType::Bool => narrow(bytes.iter().map(|&b| i64::from(b != 0)).collect()),
        DType::U8 => narrow(bytes.iter().map(|&b| i64::from(b)).collect()),
        DType::S8 => narrow(bytes.iter().map(|&b| i64::from(b as i8)).collect()),
        DType::S16 => narrow(chunks(bytes, |b| i64::from(i16::from_le_bytes(b)))?),
        DType::S32 => narrow(chunks(bytes, |b| i64::from(i32::from_le_bytes(b)))?),
        DType::U32 => narrow(chunks(bytes, |b| i64::from(u32::from_le_bytes(b)))?),
        DType::S64 => narrow(chunks(bytes, i64::from_le_bytes)?),
        DType::F16 => Ok(float(chunks(bytes, |b| f16::from_le_bytes(b).to_f32())?)),
        DType::BF16 => Ok(float(chunks(bytes, |b| bf16::from_le_bytes(b).to_f32())?)),
        DType::F32 => Ok(float(chunks(bytes, f32::from_le_bytes)?)),
        DType::F64 => Ok(float(chunks(bytes, |b| f64::from_le_bytes(b) as f32)?)),
        DType::F8E4M3 | DType::F8E5M2 => {
            Err(Fault::new(ErrorCode::UnsupportedOp, "constant: 8-bit floats").hint("write the constant as f32 and `cast` it"))
        }
    }
}

fn unary_in(op: UnaryOp) -> op::UnaryOp {
    macro_rules! same {
        ($($name:ident),*) => { match op { $(UnaryOp::$name => op::UnaryOp::$name,)* } };
    }
    same!(
        Neg, Abs, Exp, Log, Log1p, Expm1, Sqrt, Rsqrt, Recip, Sin, Cos, Tanh, Sigmoid, Silu, GeluErf, GeluTanh, Relu, Softplus,
        LogSigmoid, Erf, Floor, Round, Sign, LogicalNot
    )
}

fn binary_in(op: BinaryOp) -> op::BinaryOp {
    macro_rules! same {
        ($($name:ident),*) => { match op { $(BinaryOp::$name => op::BinaryOp::$name,)* } };
    }
    same!(Add, Sub, Mul, Div, Pow, Min, Max, Rem, Eq, Ne, Lt, Le, Gt, Ge, LogicalAnd, LogicalOr)
}

fn reduce_in(op: ReduceOp) -> op::ReduceOp {
    macro_rules! same {
        ($($name:ident),*) => { match op { $(ReduceOp::$name => op::ReduceOp::$name,)* } };
    }
    same!(Sum, Mean, Max, Min, Prod, LogSumExp)
}
