//! A graph as text, one line a node, and as a DOT drawing.
//!
//! ```text
//! %3 = param "layers.0.q_proj.weight" : f32[64, 64]
//! %12 = linear(%11, %3) alpha=1 : f32[n, 64]  # model/layers.0
//! state "adam.m" += %90
//! output "loss" = %80
//! ```
//!
//! [`crate::hash`] digests the same lines under neutral names, so an attribute that a line leaves out would make different graphs
//! equal: [`line`] prints every one.

use std::fmt::Write;

use crate::op::{AttentionSpec, Bend, ConstantData, ConvSpec, CrossEntropySpec, Instr, LinearDivergence, Op, Span};
use crate::{Dim, Float, Graph, InputId, Node, NodeId, OpRule, ParamId, Shape, StateId, Target, Type};

/// How tables are named in the text.
pub(crate) trait Names {
    fn input(&mut self, id: InputId) -> String;
    fn param(&mut self, id: ParamId) -> String;
    fn state(&mut self, id: StateId) -> String;
    fn dim(&mut self, dim: &Dim) -> String;
    /// Elements of a constant.
    fn data(&mut self, data: &ConstantData) -> String;

    fn shape(&mut self, shape: &Shape) -> String {
        let dims: Vec<String> = shape.iter().map(|d| self.dim(d)).collect();
        format!("[{}]", dims.join(", "))
    }

    fn ty(&mut self, ty: &Type) -> String {
        format!("{}{}", ty.dtype.name(), self.shape(&ty.shape))
    }
}

/// Names as the graph has them.
struct Own<'a>(&'a Graph);

impl Names for Own<'_> {
    fn input(&mut self, id: InputId) -> String {
        format!("{:?}", self.0.inputs()[id.index()].name)
    }
    fn param(&mut self, id: ParamId) -> String {
        let info = &self.0.params()[id.index()];
        format!("{:?}{}", info.name, if info.trainable { " trainable" } else { "" })
    }
    fn state(&mut self, id: StateId) -> String {
        format!("{:?}", self.0.states()[id.index()].name)
    }
    fn dim(&mut self, dim: &Dim) -> String {
        dim.to_string()
    }
    fn data(&mut self, data: &ConstantData) -> String {
        // Enough to recognise a constant by.
        const SHOWN: usize = 4;
        let (mut head, len): (Vec<String>, usize) = match data {
            ConstantData::Float(v) => (v.iter().take(SHOWN).map(ToString::to_string).collect(), v.len()),
            ConstantData::Int(v) => (v.iter().take(SHOWN).map(ToString::to_string).collect(), v.len()),
        };
        if len > SHOWN {
            head.push("...".into());
        }
        format!("[{}]", head.join(", "))
    }
}

/// The whole graph as text.
pub fn text(g: &Graph) -> String {
    let mut names = Own(g);
    let mut out = String::new();
    for id in g.ids() {
        if g.backward_start == Some(id) {
            out.push_str("# backward\n");
        }
        let node = g.node(id);
        out.push_str(&line(id, node, &mut names));
        let scope = g.scope_path(node.scope);
        if !scope.is_empty() {
            let _ = write!(out, "  # {scope}");
        }
        out.push('\n');
    }
    out.push_str(&results(g, &mut names));
    out
}

/// Effects and outputs, one a line.
pub(crate) fn results(g: &Graph, names: &mut dyn Names) -> String {
    let mut out = String::new();
    for effect in &g.effects {
        let target = match effect.target {
            Target::Param(p) => format!("param {}", names.param(p)),
            Target::State(s) => format!("state {}", names.state(s)),
        };
        let _ = writeln!(out, "{target} {} %{}", if effect.accumulate { "+=" } else { "<-" }, effect.value.0);
    }
    for (name, id) in &g.outputs {
        let _ = writeln!(out, "output {name:?} = %{}", id.0);
    }
    out
}

/// One node: `%12 = linear(%11, %3) alpha=1 : f32[n, 64]`.
pub(crate) fn line(id: NodeId, node: &Node, names: &mut dyn Names) -> String {
    let mut out = format!("%{} = {}", id.0, node.op.name());
    if !node.inputs.is_empty() {
        let inputs: Vec<String> = node.inputs.iter().map(|i| format!("%{}", i.0)).collect();
        let _ = write!(out, "({})", inputs.join(", "));
    }
    for attribute in attributes(&node.op, names) {
        let _ = write!(out, " {attribute}");
    }
    let types: Vec<String> = node.outputs.iter().map(|ty| names.ty(ty)).collect();
    let _ = write!(out, " : {}", types.join(", "));
    out
}

fn attributes(op: &Op, names: &mut dyn Names) -> Vec<String> {
    match op {
        Op::Input(op) => vec![names.input(op.id)],
        Op::Param(op) => vec![names.param(op.id)],
        Op::State(op) => vec![names.state(op.id)],
        Op::Constant(op) => vec![names.data(&op.data)],
        Op::Full(op) => vec![number(op.value)],
        Op::Iota(op) => vec![format!("axis={}", op.axis)],
        Op::Part(op) => vec![format!("index={}", op.index)],
        Op::Unary(op) => vec![format!("{:?}", op.0)],
        Op::Binary(op) => vec![format!("{:?}", op.0)],
        // The target type is the output's.
        Op::Cast(_) => vec![],
        Op::Fused(op) => {
            let spans: String = op.spans.iter().map(|s| span(*s)).collect();
            let program: Vec<String> = op.instrs.iter().enumerate().map(|(i, x)| format!("r{i}={}", instruction(*x))).collect();
            let stored: Vec<String> = op.outputs.iter().map(|(r, _)| format!("r{r}")).collect();
            vec![format!("cols={} spans={spans} {{{}}} -> {}", op.col_axes, program.join("; "), stored.join(", "))]
        }
        // The target shape is the output's.
        Op::Reshape(_) | Op::Expand(_) => vec![],
        Op::Permute(op) => vec![format!("axes={:?}", op.axes)],
        Op::Slice(op) => vec![format!("axis={} start={} len={}", op.axis, names.dim(&op.start), names.dim(&op.len))],
        Op::Concat(op) => vec![format!("axis={}", op.axis)],
        Op::Pad(op) => vec![format!("lo={:?} hi={:?} value={}", op.lo, op.hi, number(op.value))],
        Op::Reduce(op) => vec![format!("{:?} axes={:?}", op.op, op.axes), flag(op.keep, "keep")],
        Op::SegmentReduce(op) => vec![format!("{:?} count={}", op.op, names.dim(&op.count))],
        Op::ScatterRows(op) => vec![flag(op.accumulate, "accumulate")],
        Op::MatMul(op) => vec![flag(op.transpose_a, "transpose-a"), flag(op.transpose_b, "transpose-b")],
        Op::Linear(op) => {
            let activation = op.activation.map(|f| format!("{f:?}")).unwrap_or_default();
            vec![format!("alpha={}", number(op.alpha)), flag(op.bias, "bias"), activation, flag(op.addend, "addend")]
        }
        Op::LinearDx(op) => vec![format!("alpha={}", number(op.alpha)), flag(op.addend, "addend")],
        Op::LowRankLinear(op) => vec![
            flag(op.backward, "backward"),
            format!("alpha={} factor={}", number(op.alpha), number(op.factor)),
            flag(op.bias, "bias"),
            op.activation.map(|f| format!("{f:?}")).unwrap_or_default(),
            flag(op.addend, "addend"),
        ],
        Op::LinearDw(op) => vec![format!("alpha={}", number(op.alpha))],
        Op::TopK(op) => vec![format!("k={}", op.k)],
        Op::ScatterLast(op) => vec![format!("count={}", names.dim(&op.count))],
        Op::GroupedLinearDw(op) => vec![format!("count={}", names.dim(&op.count))],
        Op::Conv(op) => vec![conv(&op.spec), flag(op.bias, "bias")],
        // The shapes of images and filters are the outputs'.
        Op::ConvDx(op) => vec![conv(&op.spec)],
        Op::ConvDw(op) => vec![conv(&op.spec)],
        Op::EmbedDw(op) => vec![format!("vocab={}", names.dim(&op.vocab))],
        Op::RmsNorm(op) => {
            vec![format!("eps={}", number(op.eps)), flag(op.unit_offset, "unit-offset"), flag(op.weight, "weight")]
        }
        Op::RmsNormDx(op) => vec![flag(op.unit_offset, "unit-offset"), flag(op.weight, "weight")],
        Op::Rope(op) => {
            let frequencies: Vec<String> = op.inv_freq.iter().map(|f| number(*f)).collect();
            let settings = format!("{:?} scale={} inv-freq=[{}]", op.layout, number(op.attn_scale), frequencies.join(", "));
            let sections = if op.sections.is_empty() { String::new() } else { format!("sections={:?}", op.sections) };
            vec![settings, sections, flag(op.inverse, "inverse")]
        }
        Op::Attention(op) => attention(&op.spec),
        Op::AttentionBackward(op) => attention(&op.spec),
        Op::CachedAttention(op) => {
            let caches = format!("k={} v={}", names.state(op.k_cache), names.state(op.v_cache));
            attention(&op.spec).into_iter().chain([caches]).collect()
        }
        Op::LinearCrossEntropy(op) => vec![cross_entropy(&op.spec), flag(op.unit_grad, "unit-grad")],
        Op::LinearCrossEntropyBackward(op) => vec![cross_entropy(&op.spec), flag(op.weight_grad, "weight-grad")],
        Op::LinearStatistic(op) => vec![format!("{:?}", op.statistic), bend(&op.bend)],
        Op::LinearStatisticBackward(op) => {
            vec![format!("{:?}", op.forward.statistic), bend(&op.forward.bend), flag(op.weight_grad, "weight-grad")]
        }
        Op::LinearDivergence(op) => divergence(op),
        Op::LinearDivergenceBackward(op) => {
            divergence(&op.forward).into_iter().chain([flag(op.weight_grad, "weight-grad")]).collect()
        }
        Op::Glu(op) => vec![format!("{:?}", op.0)],
        Op::GluBackward(op) => vec![format!("{:?}", op.0)],
        Op::Adam(op) => vec![
            format!("one-minus-beta1={} beta2={}", number(op.one_minus_beta1), number(op.beta2)),
            format!("one-minus-beta2={} epsilon={}", number(op.one_minus_beta2), number(op.epsilon)),
            flag(op.packed, "packed"),
        ],
        Op::Dropout(op) => vec![format!("rate={} stream={}", number(op.rate), op.stream)],
        Op::Read(_)
        | Op::StopGrad(_)
        | Op::Select(_)
        | Op::Softmax(_)
        | Op::SoftmaxDx(_)
        | Op::GatherRows(_)
        | Op::GatherLast(_)
        | Op::GroupedLinear(_)
        | Op::GroupedLinearDx(_)
        | Op::Embed(_)
        | Op::RmsNormDw(_) => vec![],
    }
    .into_iter()
    .filter(|a| !a.is_empty())
    .collect()
}

/// Shortest text that reads back as the same number; NaNs by their bits.
fn number(value: Float) -> String {
    if value.0.is_nan() { format!("nan:{:x}", value.0.to_bits()) } else { value.0.to_string() }
}

fn flag(set: bool, name: &str) -> String {
    if set { name.to_string() } else { String::new() }
}

fn attention(spec: &AttentionSpec) -> Vec<String> {
    vec![
        format!("scale={}", number(spec.scale)),
        spec.softcap.map(|c| format!("softcap={}", number(c))).unwrap_or_default(),
        flag(spec.causal, "causal"),
        spec.window.map(|w| format!("window={w}")).unwrap_or_default(),
        spec.chunk.map(|c| format!("chunk={c}")).unwrap_or_default(),
        if spec.pinned > 0 { format!("pinned={}", spec.pinned) } else { String::new() },
        flag(spec.sinks, "sinks"),
        flag(spec.bias, "bias"),
    ]
}

fn conv(spec: &ConvSpec) -> String {
    let ConvSpec { stride, pad_lo, pad_hi, dilation, groups } = spec;
    format!("stride={stride:?} pad-lo={pad_lo:?} pad-hi={pad_hi:?} dilation={dilation:?} groups={groups}")
}

fn cross_entropy(spec: &CrossEntropySpec) -> String {
    let cap = spec.softcap.map(|c| format!(" softcap={}", number(c))).unwrap_or_default();
    let [smoothing, z, temperature] = [spec.label_smoothing, spec.z_loss, spec.temperature].map(number);
    format!("label-smoothing={smoothing} z-loss={z} temperature={temperature}{cap}")
}

fn bend(bend: &Bend) -> String {
    let cap = bend.softcap.map(|c| format!(" softcap={}", number(c))).unwrap_or_default();
    format!("temperature={}{cap}", number(bend.temperature))
}

fn divergence(op: &LinearDivergence) -> Vec<String> {
    let [p, q] = &op.bends;
    vec![format!("alpha={}", number(op.alpha)), bend(p), format!("other: {}", bend(q))]
}

fn span(span: Span) -> char {
    match span {
        Span::Full => 'f',
        Span::Row => 'r',
        Span::Col => 'c',
        Span::Scalar => 's',
    }
}

fn instruction(instr: Instr) -> String {
    match instr {
        Instr::Load(k) => format!("load {k}"),
        Instr::Const(c) => number(c),
        Instr::Unary(f, a) => format!("{f:?} r{a}"),
        Instr::Binary(f, a, b) => format!("{f:?} r{a} r{b}"),
        Instr::Select(c, a, b) => format!("Select r{c} r{a} r{b}"),
    }
}

/// The graph in DOT, for `dot -Tsvg`: boxes by op and type, one colour for the backward pass, results as ellipses.
pub fn dot(g: &Graph) -> String {
    let mut names = Own(g);
    let mut out = String::from("digraph graph_ir {\n  node [shape=box, fontname=monospace];\n");
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    for id in g.ids() {
        let node = g.node(id);
        let text = line(id, node, &mut names);
        let label = text.split_once(" = ").map_or(text.as_str(), |(_, rest)| rest);
        let backward = g.backward_start.is_some_and(|border| id >= border);
        let style = if backward { ", style=filled, fillcolor=lightgrey" } else { "" };
        let _ =
            writeln!(out, "  n{} [label=\"%{} {}\\n{}\"{style}];", id.0, id.0, quote(label), quote(&g.scope_path(node.scope)));
        for (k, input) in node.inputs.iter().enumerate() {
            let _ = writeln!(out, "  n{} -> n{} [label=\"{k}\"];", input.0, id.0);
        }
    }
    let mut result = |at: usize, value: NodeId, label: &str| {
        let _ = writeln!(out, "  r{at} [shape=ellipse, label=\"{}\"];\n  n{} -> r{at};", quote(label), value.0);
    };
    for (at, text) in results(g, &mut names).lines().enumerate() {
        let value = g.effects.get(at).map(|e| e.value).or_else(|| g.outputs.get(at - g.effects.len()).map(|(_, id)| *id));
        if let (Some(value), Some((label, _))) = (value, text.rsplit_once(' ')) {
            result(at, value, label);
        }
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Linear, Rope, RopeLayout};
    use crate::{DType, ParamInfo, SymbolId};

    fn sample() -> Graph {
        let mut g = Graph::default();
        let n = Dim::symbol(SymbolId::TOKENS);
        let x = g.input("x", Type::f32(vec![n, 4.into()])).unwrap();
        let w = g.declare_param(ParamInfo { name: "w \"q\"".into(), shape: vec![2, 4], trainable: true }).unwrap();
        let w = g.param(w).unwrap();
        g.push_scope("layers.0").unwrap();
        let y = g.push(Linear { alpha: Float(0.5), ..Linear::plain() }, &[x, w]).unwrap();
        g.pop_scope();
        let m = g.declare_state("m", Type::scalar(DType::F32)).unwrap();
        let sum = g.sum_all(y).unwrap();
        g.write(Target::State(m), sum, true).unwrap();
        g.outputs.push(("loss".into(), sum));
        g
    }

    #[test]
    fn a_line_a_node() {
        let expected = "%0 = input \"x\" : f32[n, 4]\n\
            %1 = param \"w \\\"q\\\"\" trainable : f32[2, 4]\n\
            %2 = linear(%0, %1) alpha=0.5 : f32[n, 2]  # layers.0\n\
            %3 = reduce(%2) Sum axes=[0, 1] : f32[]\n\
            state \"m\" += %3\n\
            output \"loss\" = %3\n";
        assert_eq!(text(&sample()), expected);
    }

    #[test]
    fn drawings_are_quoted() {
        let drawing = dot(&sample());
        assert!(drawing.contains("n0 -> n2 [label=\"0\"];") && drawing.contains("label=\"state \\\"m\\\" +=\""));
        assert_eq!(drawing.matches("shape=ellipse").count(), 2);
        assert!(drawing.contains("w \\\\\\\"q\\\\\\\""), "{drawing}");
    }

    #[test]
    fn every_attribute_shows() {
        let rope = |inverse, scale| {
            let rope = Rope {
                inv_freq: [Float(1.0)].into(),
                layout: RopeLayout::Halves,
                attn_scale: Float(scale),
                inverse,
                sections: [].into(),
            };
            attributes(&rope.into(), &mut Own(&Graph::default())).join(" ")
        };
        assert_eq!(rope(false, 1.0), "Halves scale=1 inv-freq=[1]");
        assert_eq!(rope(true, 0.1 + 0.2), "Halves scale=0.30000000000000004 inv-freq=[1] inverse");
    }
}
