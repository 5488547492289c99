//! A small decoder with adapters, traced as the model and tuner plugins do it, and its training graph.

use swift_graph::op::{self, BinaryOp, UnaryOp};
use swift_graph::{
    DType, Dim, Float, Graph, NodeId, ParamId, ParamInfo, Result, Shape, SymbolId, Target, Type, autodiff, passes,
};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Adapter {
    Full,
    Lora,
    Dora,
}

pub(crate) struct Sizes {
    pub(crate) layers: u64,
    pub(crate) d: u64,
    pub(crate) heads: u64,
    pub(crate) kv: u64,
    pub(crate) ffn: u64,
    pub(crate) vocab: u64,
    pub(crate) rank: u64,
}

pub(crate) const TINY: Sizes = Sizes { layers: 2, d: 8, heads: 2, kv: 1, ffn: 12, vocab: 11, rank: 2 };

fn n() -> Dim {
    Dim::symbol(SymbolId::TOKENS)
}

pub(crate) struct Model<'a> {
    g: Graph,
    sizes: &'a Sizes,
    adapter: Adapter,
    dropout: f64,
    trainable: Vec<ParamId>,
    streams: u32,
}

impl Model<'_> {
    fn param(&mut self, name: &str, shape: &[u64], trainable: bool) -> Result<NodeId> {
        let id = self.g.declare_param(ParamInfo { name: name.into(), shape: shape.to_vec(), trainable })?;
        if trainable && !self.trainable.contains(&id) {
            self.trainable.push(id);
        }
        self.g.param(id)
    }

    fn read(&mut self, p: NodeId) -> Result<NodeId> {
        self.g.push(op::Read, &[p])
    }

    fn linear(&mut self, name: &str, x: NodeId, out: u64, inp: u64) -> Result<NodeId> {
        let full = self.adapter == Adapter::Full;
        let w = self.param(&format!("{name}.weight"), &[out, inp], full)?;
        let y = self.g.linear(x, w)?;
        if full {
            return Ok(y);
        }
        let (r, scale) = (self.sizes.rank, 2.0);
        let a = self.param(&format!("{name}.lora_A"), &[r, inp], true)?;
        let b = self.param(&format!("{name}.lora_B"), &[out, r], true)?;
        let mut h = x;
        if self.dropout > 0.0 {
            let key = self.g.input("rng", Type::new(DType::S32, Shape::fixed(&[2])))?;
            self.streams += 1;
            h = self.g.push(op::Dropout { rate: Float(self.dropout), stream: self.streams }, &[x, key])?;
        }
        let h = self.g.linear(h, a)?;
        let h = self.g.linear(h, b)?;
        let h = self.g.scale(h, scale)?;
        let y = self.g.add(y, h)?;
        if self.adapter == Adapter::Lora {
            return Ok(y);
        }
        let m = self.param(&format!("{name}.magnitude"), &[out], true)?;
        let (w, a, b) = (self.read(w)?, self.read(a)?, self.read(b)?);
        let delta = self.g.push(op::MatMul { transpose_a: false, transpose_b: false }, &[b, a])?;
        let delta = self.g.scale(delta, scale)?;
        let z = self.g.add(w, delta)?;
        let two = self.g.scalar(2.0, DType::F32)?;
        let zz = self.g.binary(BinaryOp::Pow, z, two)?;
        let norm = self.g.reduce(op::ReduceOp::Sum, zz, &[1], false)?;
        let norm = self.g.unary(UnaryOp::Sqrt, norm)?;
        let norm = self.g.push(op::StopGrad, &[norm])?;
        let m = self.read(m)?;
        let gain = self.g.div(m, norm)?;
        self.g.mul(y, gain)
    }

    fn norm(&mut self, name: &str, x: NodeId) -> Result<NodeId> {
        let w = self.param(name, &[self.sizes.d], self.adapter == Adapter::Full)?;
        self.g.push(op::RmsNorm { eps: Float(1e-5), unit_offset: false, weight: true }, &[x, w])
    }

    fn layer(&mut self, k: u64, x: NodeId) -> Result<NodeId> {
        let s = self.sizes;
        let (d, head) = (s.d, s.d / s.heads);
        let positions = self.g.input("positions", Type::new(DType::S32, vec![n()]))?;
        let segments = self.g.input("segments", Type::new(DType::S32, vec![n()]))?;
        let name = |m: &str| format!("layers.{k}.{m}");
        let y = self.norm(&name("input_norm"), x)?;
        let q = self.linear(&name("q"), y, d, d)?;
        let kk = self.linear(&name("k"), y, s.kv * head, d)?;
        let v = self.linear(&name("v"), y, s.kv * head, d)?;
        let heads = |g: &mut Graph, t: NodeId, h: u64| g.reshape(t, vec![n(), Dim::fixed(h), Dim::fixed(head)].into());
        let (q, kk, v) = (heads(&mut self.g, q, s.heads)?, heads(&mut self.g, kk, s.kv)?, heads(&mut self.g, v, s.kv)?);
        let rope = op::Rope {
            inv_freq: (0..head / 2).map(|i| Float(10f64.powf(-(i as f64)))).collect::<Vec<_>>().into(),
            layout: op::RopeLayout::Halves,
            attn_scale: Float(1.0),
            inverse: false,
            sections: [].into(),
        };
        let q = self.g.push(rope.clone(), &[q, positions])?;
        let kk = self.g.push(rope, &[kk, positions])?;
        let spec = op::AttentionSpec::causal((head as f64).powf(-0.5));
        let o = self.g.push(op::Attention { spec }, &[q, kk, v, segments])?;
        let o = self.g.reshape(o, vec![n(), Dim::fixed(d)].into())?;
        let o = self.linear(&name("o"), o, d, d)?;
        let x = self.g.add(x, o)?;
        let y = self.norm(&name("post_norm"), x)?;
        let gate = self.linear(&name("gate"), y, s.ffn, d)?;
        let up = self.linear(&name("up"), y, s.ffn, d)?;
        let act = self.g.unary(UnaryOp::Silu, gate)?;
        let act = self.g.mul(act, up)?;
        let down = self.linear(&name("down"), act, d, s.ffn)?;
        self.g.add(x, down)
    }
}

/// The forward graph with its loss, and what trains.
pub(crate) fn forward(sizes: &Sizes, adapter: Adapter, dropout: f64) -> (Graph, NodeId, Vec<ParamId>) {
    let mut m = Model { g: Graph::default(), sizes, adapter, dropout, trainable: Vec::new(), streams: 0 };
    let build = |m: &mut Model<'_>| -> Result<NodeId> {
        m.g.push_scope("model")?;
        let ids = m.g.input("ids", Type::new(DType::S32, vec![n()]))?;
        let table = m.param("embed", &[sizes.vocab, sizes.d], adapter == Adapter::Full)?;
        let mut x = m.g.push(op::Embed, &[table, ids])?;
        for k in 0..sizes.layers {
            m.g.push_scope(&format!("layers.{k}"))?;
            x = m.layer(k, x)?;
            m.g.pop_scope();
        }
        let x = m.norm("norm", x)?;
        m.g.pop_scope();
        let targets = m.g.input("targets", Type::new(DType::S32, vec![n()]))?;
        let head = m.param("head", &[sizes.vocab, sizes.d], false)?;
        let spec =
            op::CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
        let loss = m.g.push(op::LinearCrossEntropy { spec, unit_grad: false }, &[x, head, targets])?;
        let weights = m.g.input("loss-weights", Type::f32(vec![n()]))?;
        let total = m.g.input("total.tokens", Type::scalar(DType::F32))?;
        let loss = m.g.mul(loss, weights)?;
        let loss = m.g.sum_all(loss)?;
        m.g.div(loss, total)
    };
    let loss = build(&mut m).unwrap();
    m.g.outputs.push(("loss".into(), loss));
    (m.g, loss, m.trainable)
}

/// The training graph: gradients are added to states.
pub(crate) fn training(sizes: &Sizes, adapter: Adapter, dropout: f64, composites: bool) -> Graph {
    let (mut g, _, trainable) = forward(sizes, adapter, dropout);
    if composites {
        g = passes::before_autodiff(&g).unwrap();
    }
    let loss = g.output("loss").unwrap();
    let grads = autodiff::differentiate(&mut g, loss, &trainable).unwrap();
    for (param, grad) in grads {
        let info = g.params()[param.index()].clone();
        let state = g.declare_state(&format!("grad.{}", info.name), Type::f32(Shape::fixed(&info.shape))).unwrap();
        g.write(Target::State(state), grad, true).unwrap();
    }
    g
}
