//! A whole model of the Llama kind: what differentiation promises beyond single ops.

use swift_graph::autodiff::differentiate;
use swift_graph::op::{self, Op};
use swift_graph::{DType, Float, Graph, NodeId, ParamId, Type, interp};

use crate::harness::{Case, n};

const D: u64 = 8;
const HEADS: u64 = 2;
const KV: u64 = 1;
const HEAD: u64 = 4;
const FF: u64 = 6;
const VOCAB: u64 = 7;

/// Two layers, tied embedding, packed sequences; gives the mean loss.
fn llama(c: &mut Case) -> NodeId {
    let ids = c.tokens("ids", &[1, 4, 2, 6, 0, 3]);
    let positions = c.tokens("positions", &[0, 1, 2, 3, 0, 1]);
    let segments = c.tokens("segments", &[0, 0, 0, 0, 1, 1]);
    let targets = c.tokens("targets", &[4, 2, 6, -100, 3, -100]);
    let table = c.weight(&[VOCAB, D]);
    let norm = op::RmsNorm { eps: Float(1e-5), unit_offset: false, weight: true };
    let rope = op::Rope {
        inv_freq: [Float(1.0), Float(0.1)].into(),
        layout: op::RopeLayout::Halves,
        attn_scale: Float(1.0),
        inverse: false,
        sections: [].into(),
    };
    let mut x = c.push(op::Embed, &[table, ids]);
    for layer in 0..2 {
        c.g.push_scope(&format!("layers.{layer}")).unwrap();
        let w = c.weight(&[D]);
        let h = c.push(norm.clone(), &[x, w]);
        let [q, k, v] = [HEADS, KV, KV].map(|heads| {
            let w = c.weight(&[heads * HEAD, D]);
            let y = c.g.linear(h, w).unwrap();
            c.g.reshape(y, vec![n(), heads.into(), HEAD.into()].into()).unwrap()
        });
        let (q, k) = (c.push(rope.clone(), &[q, positions]), c.push(rope.clone(), &[k, positions]));
        let spec = op::AttentionSpec::causal(0.5);
        let o = c.push(op::Attention { spec }, &[q, k, v, segments]);
        let o = c.g.reshape(o, vec![n(), D.into()].into()).unwrap();
        let w = c.weight(&[D, D]);
        let o = c.g.linear(o, w).unwrap();
        x = c.g.add(x, o).unwrap();
        let w = c.weight(&[D]);
        let h = c.push(norm.clone(), &[x, w]);
        let (gate, up, down) = (c.weight(&[FF, D]), c.weight(&[FF, D]), c.weight(&[D, FF]));
        let (gate, up) = (c.g.linear(h, gate).unwrap(), c.g.linear(h, up).unwrap());
        let h = c.push(op::Glu(op::Gate::Silu), &[gate, up]);
        let h = c.g.linear(h, down).unwrap();
        x = c.g.add(x, h).unwrap();
        c.g.pop_scope();
    }
    let w = c.weight(&[D]);
    let x = c.push(norm, &[x, w]);
    let spec = op::CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
    let loss = c.push(op::LinearCrossEntropy { spec, unit_grad: false }, &[x, table, targets]);
    let tokens = c.g.input("total.tokens", Type::scalar(DType::F32)).unwrap();
    c.env.inputs.insert("total.tokens".into(), interp::Tensor::scalar(4.0));
    let sum = c.g.sum_all(loss).unwrap();
    c.g.div(sum, tokens).unwrap()
}

fn count(g: &Graph, want: impl Fn(&Op) -> bool) -> usize {
    g.nodes().iter().filter(|n| want(&n.op)).count()
}

/// The guard against silently missing gradients: no trainable parameter of a model may get zeros.
#[test]
fn every_parameter_of_a_model_gets_its_gradient() {
    let mut c = Case::new();
    let loss = llama(&mut c);
    c.check("llama", loss);
    let mut c = Case::new();
    let loss = llama(&mut c);
    let grads = differentiate(&mut c.g, loss, &c.wrt).unwrap();
    let values = interp::run(&c.g, &c.env).unwrap();
    assert_eq!(grads.len(), c.wrt.len());
    for (param, grad) in grads {
        let largest = values.of(grad).data.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
        assert!(largest > 1e-6, "{} gets no gradient", c.g.params()[param.index()].name);
    }
}

#[test]
fn frozen_parameters_record_nothing() {
    let mut c = Case::new();
    let loss = llama(&mut c);
    // Only the last layer's down projection trains: nothing of the first layer or of attention is visited.
    let down: ParamId = c.wrt[c.wrt.len() - 2];
    let border = c.g.len();
    let grads = differentiate(&mut c.g, loss, &[down]).unwrap();
    assert_eq!(c.g.backward_start.map(NodeId::index), Some(border));
    assert_eq!(count(&c.g, |op| matches!(op, Op::LinearDw(_))), 1);
    assert_eq!(count(&c.g, |op| matches!(op, Op::LinearDx(_) | Op::AttentionBackward(_) | Op::EmbedDw(_))), 0);
    assert_eq!(count(&c.g, |op| matches!(op, Op::RmsNormDx(_))), 1);
    assert_eq!(count(&c.g, |op| matches!(op, Op::LinearCrossEntropy(ce) if ce.unit_grad)), 1);
    let values = interp::run(&c.g, &c.env).unwrap();
    assert!(values.of(grads[0].1).data.iter().any(|v| *v != 0.0));
}

#[test]
fn a_parameter_off_the_path_gets_zeros() {
    let mut c = Case::new();
    let (x, y) = (c.x(&[2]), c.x(&[3]));
    let loss = c.g.sum_all(x).unwrap();
    let _ = c.g.sum_all(y).unwrap();
    let grads = differentiate(&mut c.g, loss, &c.wrt).unwrap();
    let values = interp::run(&c.g, &c.env).unwrap();
    assert_eq!(values.of(grads[0].1).data, [1.0; 2]);
    assert_eq!(values.of(grads[1].1).data, [0.0; 3]);
}

#[test]
fn stopped_values_get_nothing() {
    let mut c = Case::new();
    let x = c.given(&[2], &[3.0, -5.0]);
    let stopped = c.push(op::StopGrad, &[x]);
    let product = c.g.mul(stopped, x).unwrap();
    let loss = c.g.sum_all(product).unwrap();
    let grads = differentiate(&mut c.g, loss, &c.wrt).unwrap();
    assert_eq!(interp::run(&c.g, &c.env).unwrap().of(grads[0].1).data, [3.0, -5.0]);
}

#[test]
fn equal_extremes_share_the_gradient() {
    let mut c = Case::new();
    let x = c.given(&[4], &[2.0, -1.0, 2.0, 0.0]);
    let top = c.g.reduce(op::ReduceOp::Max, x, &[0], false).unwrap();
    let grads = differentiate(&mut c.g, top, &c.wrt).unwrap();
    assert_eq!(interp::run(&c.g, &c.env).unwrap().of(grads[0].1).data, [0.5, 0.0, 0.5, 0.0]);
}

#[test]
fn only_a_scalar_can_be_differentiated() {
    let mut c = Case::new();
    let x = c.x(&[2]);
    assert!(differentiate(&mut c.g, x, &c.wrt).unwrap_err().to_string().contains("one float"));
}
