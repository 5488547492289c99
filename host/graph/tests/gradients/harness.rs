//! Builds one small graph, differentiates it, and compares every gradient with finite differences of the interpreter in f64.

use swift_graph::autodiff::differentiate;
use swift_graph::interp::{self, Env, Tensor};
use swift_graph::philox::word;
use swift_graph::{DType, Dim, Graph, NodeId, OpRule, ParamId, ParamInfo, Shape, SymbolId, Type, op};

/// A graph under construction, with values for what it reads.
pub(crate) struct Case {
    pub(crate) g: Graph,
    pub(crate) env: Env,
    pub(crate) wrt: Vec<ParamId>,
    drawn: u64,
}

impl Case {
    pub(crate) fn new() -> Case {
        Case { g: Graph::default(), env: Env { refuse_nan: true, ..Env::default() }, wrt: Vec::new(), drawn: 0 }
    }

    /// The next number in -1..1.
    fn draw(&mut self) -> f64 {
        self.drawn += 1;
        f64::from(word([7, 11], 3, self.drawn)) / 2f64.powi(31) - 1.0
    }

    pub(crate) fn random(&mut self, shape: &[usize]) -> Tensor {
        Tensor::new(shape.to_vec(), (0..shape.iter().product()).map(|_| self.draw()).collect())
    }

    fn declare(&mut self, shape: &[u64], trainable: bool, value: Tensor) -> (ParamId, NodeId) {
        let name = format!("p{}", self.g.params().len());
        let info = ParamInfo { name: name.clone(), shape: shape.to_vec(), trainable };
        let id = self.g.declare_param(info).unwrap();
        self.env.params.insert(name, value);
        (id, self.g.param(id).unwrap())
    }

    /// A trainable parameter's storage node.
    pub(crate) fn weight(&mut self, shape: &[u64]) -> NodeId {
        let value = self.random(&sizes(shape));
        let (id, node) = self.declare(shape, true, value);
        self.wrt.push(id);
        node
    }

    /// A parameter that gets no gradient.
    pub(crate) fn frozen(&mut self, shape: &[u64]) -> NodeId {
        let value = self.random(&sizes(shape));
        self.declare(shape, false, value).1
    }

    /// A trainable dense value.
    pub(crate) fn x(&mut self, shape: &[u64]) -> NodeId {
        let w = self.weight(shape);
        self.g.push(op::Read, &[w]).unwrap()
    }

    /// A trainable dense value with these elements.
    pub(crate) fn given(&mut self, shape: &[u64], data: &[f64]) -> NodeId {
        let (id, node) = self.declare(shape, true, Tensor::new(sizes(shape), data.to_vec()));
        self.wrt.push(id);
        self.g.push(op::Read, &[node]).unwrap()
    }

    /// A trainable dense value in 0.5..1.5.
    pub(crate) fn positive(&mut self, shape: &[u64]) -> NodeId {
        let value = self.random(&sizes(shape)).map(|v| 1.0 + v / 2.0);
        let data = value.data;
        self.given(shape, &data)
    }

    /// A whole-number input `[len]`.
    pub(crate) fn ints(&mut self, name: &str, values: &[i64]) -> NodeId {
        self.whole(name, vec![Dim::fixed(values.len() as u64)], values)
    }

    /// A whole-number input `[n]`.
    pub(crate) fn tokens(&mut self, name: &str, values: &[i64]) -> NodeId {
        self.env.bindings.set(SymbolId::TOKENS, values.len() as u64);
        self.whole(name, vec![Dim::symbol(SymbolId::TOKENS)], values)
    }

    fn whole(&mut self, name: &str, shape: Vec<Dim>, values: &[i64]) -> NodeId {
        let data = values.iter().map(|&v| v as f64).collect();
        self.env.inputs.insert(name.to_string(), Tensor::new(vec![values.len()], data));
        self.g.input(name, Type::new(DType::S32, shape)).unwrap()
    }

    /// A trainable value `[n, ...]` of symbolic length.
    pub(crate) fn rows(&mut self, shape: &[u64]) -> NodeId {
        let table = self.x(shape);
        let order: Vec<i64> = (0..shape[0] as i64).collect();
        let order = self.tokens("order", &order);
        self.g.push(op::GatherRows, &[table, order]).unwrap()
    }

    pub(crate) fn push(&mut self, op: impl Into<op::Op>, inputs: &[NodeId]) -> NodeId {
        self.g.push(op, inputs).unwrap()
    }

    /// `Σ y·r` with random `r`, so that every element has a gradient of its own.
    pub(crate) fn probe(&mut self, y: NodeId) -> NodeId {
        let ty = self.g.ty(y).clone();
        let value = self.random(&ty.shape.eval(&self.env.bindings).unwrap());
        let name = format!("probe{}", self.g.inputs().len());
        self.env.inputs.insert(name.clone(), value);
        let r = self.g.input(&name, ty).unwrap();
        let product = self.g.mul(y, r).unwrap();
        self.g.sum_all(product).unwrap()
    }

    /// Differentiates `Σ y·r` and compares; gives the names of the ops of the forward graph.
    pub(crate) fn check(mut self, name: &str, y: NodeId) -> Vec<&'static str> {
        let loss = self.probe(y);
        let forward = self.g.clone();
        let grads = differentiate(&mut self.g, loss, &self.wrt).unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = interp::run(&self.g, &self.env).unwrap_or_else(|e| panic!("{name}: {e}"));
        for (param, grad) in grads {
            let info = forward.params()[param.index()].clone();
            let exact = values.of(grad).clone();
            assert_eq!(exact.shape, sizes(&info.shape), "{name}");
            for i in 0..exact.data.len() {
                let about = self.slope(&forward, loss, &info.name, i);
                let error = (about - exact.data[i]).abs();
                let scale = about.abs().max(exact.data[i].abs());
                assert!(error <= 1e-6 * scale + 1e-10, "{name}: {}[{i}] is {}, by differences {about}", info.name, exact.data[i]);
            }
        }
        forward.nodes().iter().map(|n| n.op.name()).collect()
    }

    /// Five-point central difference; its error is about h⁴/30 of the fifth derivative.
    fn slope(&mut self, forward: &Graph, loss: NodeId, name: &str, i: usize) -> f64 {
        const H: f64 = 5e-4;
        let centre = self.env.params[name].data[i];
        let mut at = |steps: f64| {
            self.env.params.get_mut(name).unwrap().data[i] = centre + steps * H;
            interp::run(forward, &self.env).unwrap().of(loss).data[0]
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * H);
        self.env.params.get_mut(name).unwrap().data[i] = centre;
        slope
    }
}

pub(crate) fn sizes(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|&d| d as usize).collect()
}

pub(crate) fn n() -> Dim {
    Dim::symbol(SymbolId::TOKENS)
}

pub(crate) fn shape(dims: &[u64]) -> Shape {
    Shape::fixed(dims)
}
