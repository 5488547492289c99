//! From plugins to the executables of a run: forward and backward, evaluation, and the optimizer's update, over one weight store.

use std::collections::HashMap;
use std::time::Instant;

use swift_graph::dynamic8::Map;
use swift_graph::op::ReduceOp;
use swift_graph::passes::{self, Options};
use swift_graph::{DType, Dim, Graph, NodeId, ParamId, Shape, StateId, SymbolId, Target, Type, autodiff, hash, plan};
use swift_plugin::{
    BatchBinding, Head, LossGuest, Mode, OptimizerGuest, ParamDecl, ParamInfo, SlotDecl, StepBinding, TracedModel,
};
use swift_runtime::{Device, Executable, Store};
use swift_serve::{AdaptedModel, Program};

use crate::{Result, TrainError};

/// What the optimizer's graph needs to know.
pub struct UpdateSpec<'a> {
    /// The optimizer's own configuration.
    pub config: &'a str,
    /// Global gradient norm that is not exceeded; 0 leaves gradients as they are.
    pub max_grad_norm: f64,
}

/// Compiled graphs of a run.
pub struct Programs {
    /// One micro-batch forward and backward; adds to the gradient states. Outputs `loss` and `metric.<name>`.
    pub train: Box<dyn Executable>,
    /// One batch forward, dropout off. To be refreshed before each evaluation.
    pub eval: Program,
    /// (calendar, update): the program runs after steps that `calendar` divides. Outputs `grad_norm`.
    pub updates: Vec<(u32, Box<dyn Executable>)>,
    /// Constants computed from frozen weights, once per run.
    pub prologue: Option<Box<dyn Executable>>,
    /// Fields that batches must carry.
    pub fields: Vec<String>,
    /// Whether rows come as (chosen, rejected) pairs.
    pub paired: bool,
    /// Trained parameters in store order.
    pub trainable: Vec<ParamDecl>,
    /// Optimizer slots as states, for checkpoints.
    pub slots: Vec<String>,
    /// Canonical hash of the training graph, as traced and differentiated.
    pub graph_hash: String,
    /// Milliseconds spent in plugins.
    pub trace_ms: f64,
    /// Milliseconds spent in passes, planning and compiling.
    pub compile_ms: f64,
}

/// Traces, differentiates, plans and compiles everything that a run needs. After this no plugin of the run is called again.
///
/// # Errors
/// When a plugin fails, a graph is unsound, or nothing would be trained.
#[expect(clippy::too_many_arguments, reason = "what a run is made of; every caller has all of it at hand")]
pub fn assemble(
    model: &mut AdaptedModel,
    loss: &mut LossGuest,
    loss_config: &str,
    optimizer: &mut OptimizerGuest,
    update: &UpdateSpec<'_>,
    device: &dyn Device,
    store: &mut Store,
    options: &Options,
) -> Result<Programs> {
    let started = Instant::now();
    let needs = loss.needs(loss_config)?;
    if needs.teacher {
        return Err(TrainError::Config("the loss asks for a teacher model, which this version cannot load".into()));
    }
    if needs.reference && !model.trained_base().is_empty() {
        return Err(TrainError::Config(
            "the loss asks for a reference model; train an adapter, whose base is the reference, instead of the base itself"
                .into(),
        ));
    }
    let trainable = model.trainable();
    let traced = model.trace(Mode::Train)?;
    let forward = forward_graph(model, &traced, loss, loss_config, &needs.fields, needs.reference, true)?;
    let eval = forward_graph(model, &traced, loss, loss_config, &needs.fields, needs.reference, false)?;
    let (update_graphs, slots) = update_graphs(optimizer, update, &trainable)?;
    let trace_ms = started.elapsed().as_secs_f64() * 1e3;

    let started = Instant::now();
    let mut g = passes::before_autodiff(&forward)?;
    let by_name: HashMap<String, ParamId> =
        g.params().iter().enumerate().map(|(i, p)| (p.name.clone(), ParamId(i as u32))).collect();
    let wrt: Vec<ParamId> = trainable.iter().filter_map(|p| by_name.get(&p.name).copied()).collect();
    if wrt.is_empty() {
        return Err(TrainError::Config("the tuner trains no parameter that the model uses".into()));
    }
    let loss_node = g.output("loss")?;
    for (param, grad) in autodiff::differentiate(&mut g, loss_node, &wrt)? {
        let info = g.params()[param.index()].clone();
        let state = g.declare_state(&grad_state(&info.name), Type::f32(Shape::fixed(&info.shape)))?;
        g.write(Target::State(state), grad, true)?;
    }
    let graph_hash = hash::digest(&g);
    let (main, prologue) = passes::fold_frozen(&g)?;
    let train = compile(main, device, store, options)?;
    let prologue = prologue.map(|p| compile(p, device, store, options)).transpose()?;
    let eval = Program::compile(device, store, eval)?;
    let updates =
        update_graphs.into_iter().map(|(every, g)| Ok((every, compile(g, device, store, options)?))).collect::<Result<_>>()?;
    let compile_ms = started.elapsed().as_secs_f64() * 1e3;
    Ok(Programs {
        train,
        eval,
        updates,
        prologue,
        fields: needs.fields,
        paired: needs.paired,
        trainable,
        slots,
        graph_hash,
        trace_ms,
        compile_ms,
    })
}

/// Model, adapter and loss in one graph, as training differentiates it: for `plugin trace`.
///
/// # Errors
/// When a plugin fails.
pub fn forward(model: &mut AdaptedModel, loss: &mut LossGuest, loss_config: &str) -> Result<Graph> {
    let needs = loss.needs(loss_config)?;
    let traced = model.trace(Mode::Train)?;
    forward_graph(model, &traced, loss, loss_config, &needs.fields, needs.reference, true)
}

/// Name of the state that sums a parameter's gradient.
pub fn grad_state(param: &str) -> String {
    format!("grad.{param}")
}

fn compile(g: Graph, device: &dyn Device, store: &mut Store, options: &Options) -> Result<Box<dyn Executable>> {
    let g = passes::optimize(g, options)?;
    let names: Vec<String> = g.params().iter().map(|p| p.name.clone()).collect();
    let plan = plan::plan(g, &|p| store.is_dense(&names[p.index()]))?;
    for state in plan.graph.states() {
        let sizes = state.ty.shape.iter().map(|d| d.as_fixed().map(|v| v as usize)).collect::<Option<Vec<_>>>();
        if let Some(sizes) = sizes {
            store.ensure(state, &sizes)?;
        }
    }
    Ok(device.compile(plan)?)
}

/// Model, adapter and loss in one graph with outputs `loss` and `metric.<name>`.
fn forward_graph(
    model: &mut AdaptedModel,
    traced: &TracedModel,
    loss: &mut LossGuest,
    loss_config: &str,
    fields: &[String],
    reference: bool,
    training: bool,
) -> Result<Graph> {
    let mut g = Graph::default();
    let reference: Option<Head> = match reference {
        true => {
            g.push_scope("reference")?;
            let (head, _) = model.splice(&mut g, traced, false, false)?;
            g.pop_scope();
            Some(head)
        }
        false => None,
    };
    let (policy, aux) = model.splice(&mut g, traced, true, training)?;
    let tokens = || vec![Dim::symbol(SymbolId::TOKENS)];
    let mut bound = Vec::new();
    for name in ["segments", "targets", "positions"] {
        bound.push((name.to_string(), g.input(name, Type::new(DType::S32, tokens()))?));
    }
    bound.push(("loss-weights".to_string(), g.input("loss-weights", Type::f32(tokens()))?));
    for name in ["chosen", "rejected"] {
        let pairs = vec![Dim::symbol(SymbolId::PAIRS)];
        bound.push((name.to_string(), g.input(name, Type::new(DType::S32, pairs))?));
    }
    if let Some(name) = fields.iter().find(|f| !bound.iter().any(|(n, _)| n == *f)) {
        let known: Vec<&str> = bound.iter().map(|(n, _)| n.as_str()).collect();
        return Err(TrainError::Config(format!("the loss asks for the batch field `{name}`; there are {}", known.join(", "))));
    }
    let mut totals = Vec::new();
    for name in ["tokens", "sequences"] {
        totals.push((name.to_string(), g.input(&format!("total.{name}"), Type::scalar(DType::F32))?));
    }
    let binding = BatchBinding { policy, reference, teacher: None, fields: bound, totals };
    let output = loss.trace(&mut g, &binding, loss_config)?;
    let mut total = output.loss;
    if g.ty(total).shape.rank() != 0 {
        return Err(TrainError::Config(format!("the loss plugin returned {}, not a scalar", g.ty(total))));
    }
    for (value, weight) in aux {
        let term = g.scale(value, f64::from(weight))?;
        total = g.add(total, term)?;
    }
    g.outputs.push(("loss".into(), total));
    for (name, value) in output.metrics {
        g.outputs.push((format!("metric.{name}"), value));
    }
    Ok(g)
}

/// (steps between runs, graph), rarest first.
type Calendar = Vec<(u32, Graph)>;

/// One graph per calendar entry of the optimizer. The first (every step) also clips, reports the gradient norm and clears the sums.
fn update_graphs(
    optimizer: &mut OptimizerGuest,
    spec: &UpdateSpec<'_>,
    trainable: &[ParamDecl],
) -> Result<(Calendar, Vec<String>)> {
    let mut plans = Vec::with_capacity(trainable.len());
    for p in trainable {
        let info = ParamInfo { name: p.name.clone(), shape: p.shape.clone(), tags: p.tags.clone() };
        plans.push((optimizer.plan(spec.config, &info)?, info));
    }
    let mut calendar: Vec<u32> = plans.iter().flat_map(|(p, _)| p.programs.iter().map(|g| g.every)).collect();
    if calendar.contains(&0) {
        return Err(TrainError::Config("the optimizer plans a program that runs every 0 steps".into()));
    }
    calendar.push(1);
    calendar.sort_unstable_by(|a, b| b.cmp(a));
    calendar.dedup();
    let mut slots = Vec::new();
    let mut graphs = Vec::new();
    for every in calendar {
        let mut g = Graph::default();
        let scalars = ["lr", "step", "weight-decay"]
            .map(|name| g.input(name, Type::scalar(DType::F32)).map(|node| (name.to_string(), node)))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        let (grads, norm) = clipped_grads(&mut g, trainable, spec.max_grad_norm)?;
        let mut scalars = scalars;
        scalars.push(("grad-norm".into(), norm));
        g.outputs.push(("grad_norm".into(), norm));
        for ((p, (plan, info)), (grad, state)) in trainable.iter().zip(&plans).zip(grads) {
            let id = g.declare_param(swift_graph::ParamInfo { name: p.name.clone(), shape: p.shape.clone(), trainable: true })?;
            let mut states: Vec<(String, StateId)> = Vec::new();
            for slot in &plan.slots {
                let name = format!("opt.{}.{}", p.name, slot.name);
                let ty = Type::f32(Shape::fixed(&slot.shape));
                let id = match map_of(slot) {
                    Some(map) => g.declare_packed_state(&name, ty, map)?,
                    None => g.declare_state(&name, ty)?,
                };
                states.push((slot.name.clone(), id));
                if !slots.contains(&name) {
                    slots.push(name);
                }
            }
            for program in plan.programs.iter().filter(|r| r.every == every) {
                let storage = g.param(id)?;
                let weight = g.push(swift_graph::op::Read, &[storage])?;
                let binding = StepBinding { info: info.clone(), grad, weight, slots: states.clone(), scalars: scalars.clone() };
                g.push_scope(&p.name)?;
                let new = optimizer.trace(&mut g, &program.name, &binding, spec.config)?;
                g.pop_scope();
                if let Some(new) = new {
                    g.write(Target::Param(id), new, false)?;
                }
            }
            if every == 1 {
                let zero = g.full(Shape::fixed(&p.shape), 0.0, DType::F32)?;
                g.write(Target::State(state), zero, false)?;
            }
        }
        graphs.push((every, g));
    }
    Ok((graphs, slots))
}

/// Smallest slot that is kept in 8 bits, as in bitsandbytes: below, rounding would cost more than it saves.
const LEAST_PACKED: u64 = 4096;

/// What a slot is rounded to, if its plugin allows that and it is large enough.
fn map_of(slot: &SlotDecl) -> Option<Map> {
    let elements = slot.shape.iter().fold(1u64, |p, &d| p.saturating_mul(d));
    let map = if slot.dtype == DType::U8 { Map::Unsigned } else { Map::Signed };
    (slot.quantised && elements >= LEAST_PACKED).then_some(map)
}

/// Gradient sums scaled so that their global norm does not exceed `max_norm` (Pascanu et al. 2013; the 1e-6 is torch's).
fn clipped_grads(g: &mut Graph, trainable: &[ParamDecl], max_norm: f64) -> Result<(Vec<(NodeId, StateId)>, NodeId)> {
    let mut grads = Vec::with_capacity(trainable.len());
    let mut total = g.scalar(0.0, DType::F32)?;
    for p in trainable {
        let state = g.declare_state(&grad_state(&p.name), Type::f32(Shape::fixed(&p.shape)))?;
        let grad = g.read_state(state)?;
        let square = g.mul(grad, grad)?;
        let axes: Vec<usize> = (0..p.shape.len()).collect();
        let sum = g.reduce(ReduceOp::Sum, square, &axes, false)?;
        total = g.add(total, sum)?;
        grads.push((grad, state));
    }
    let norm = g.unary(swift_graph::op::UnaryOp::Sqrt, total)?;
    if max_norm > 0.0 {
        let small = g.scalar(1e-6, DType::F32)?;
        let below = g.add(norm, small)?;
        let limit = g.scalar(max_norm, DType::F32)?;
        let ratio = g.div(limit, below)?;
        let one = g.scalar(1.0, DType::F32)?;
        let factor = g.binary(swift_graph::op::BinaryOp::Min, ratio, one)?;
        for (grad, _) in &mut grads {
            *grad = g.mul(*grad, factor)?;
        }
    }
    Ok((grads, norm))
}
