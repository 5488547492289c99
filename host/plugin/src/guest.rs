//! One instance of a plugin, and how it is called: budget set, graph moved in, failure translated, graph moved out.
//!
//! **Invariant:** a store belongs to one guest object of one plugin. After a trap it is never entered again; the object answers every
//! later call with an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use swift_graph::{Graph, NodeId};
use wasmtime::component::{Instance, InstancePre, Resource};
use wasmtime::{AsContextMut, Store, StoreContextMut};

use crate::bindings::tensor::graph::Value;
use crate::bindings::tensor::types::Error as WitError;
use crate::decl::code_name;
use crate::engine::{Plane, ticks};
use crate::env::{Log, LogSink};
use crate::error::{Failure, clean};
use crate::limits::{LimitConfig, Meter};
use crate::manifest::Grants;
use crate::trace::{Fault, Loan, Trace};
use crate::{Error, Result};

/// How often guests of a plugin have been entered. Shared by all clones of a [`crate::Plugin`].
#[derive(Clone, Debug, Default)]
pub struct CallCount(Arc<AtomicU64>);

impl CallCount {
    /// Calls so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A store's data.
#[derive(Debug)]
pub(crate) struct Ctx {
    meter: Meter,
    pub(crate) limits: Arc<LimitConfig>,
    pub(crate) grants: Grants,
    pub(crate) log: Log,
    pub(crate) seed: u64,
    pub(crate) trace: Option<Trace>,
    /// Calls into the host during this call.
    pub(crate) calls: u64,
    /// First handle representation that was never used in this store.
    base: u32,
}

/// What a guest is made of.
pub(crate) struct Recipe {
    pub(crate) plugin: String,
    pub(crate) pre: InstancePre<Ctx>,
    pub(crate) plane: Plane,
    pub(crate) limits: Arc<LimitConfig>,
    pub(crate) grants: Grants,
    pub(crate) log: LogSink,
    pub(crate) seed: u64,
    pub(crate) count: CallCount,
}

pub(crate) struct Guest {
    plugin: String,
    store: Store<Ctx>,
    pub(crate) instance: Instance,
    plane: Plane,
    count: CallCount,
    dead: Option<String>,
}

/// A call's arguments besides the store: resources that stand for what is lent.
pub(crate) struct Lent(u32);

impl Lent {
    /// The builder, session, site, batch or step of the call.
    pub(crate) fn root<T: 'static>(&self) -> Resource<T> {
        Resource::new_own(self.0)
    }

    /// A value lent directly.
    pub(crate) fn value(&self, node: NodeId) -> Resource<Value> {
        Resource::new_own(self.0 + node.0)
    }
}

impl Guest {
    /// Instantiates; the guest's start code runs under the same budget as a call.
    pub(crate) fn new(recipe: Recipe) -> Result<Guest> {
        let engine = recipe.pre.engine();
        let limits = recipe.limits;
        let ctx = Ctx {
            meter: Meter::new(&limits),
            grants: recipe.grants,
            log: Log { plugin: recipe.plugin.clone(), sink: recipe.log, lines: 0, last_warning: None },
            seed: recipe.seed,
            trace: None,
            calls: 0,
            base: 0,
            limits,
        };
        let mut store = Store::new(engine, ctx);
        store.limiter(|ctx| &mut ctx.meter);
        store.set_max_component_handles(usize::try_from(store.data().limits.handles).unwrap_or(usize::MAX));
        store.set_hostcall_fuel(usize::try_from(store.data().limits.hostcall_bytes).unwrap_or(usize::MAX));
        recipe.count.add();
        refill(&mut store, recipe.plane).map_err(|e| Error::Engine(e.to_string()))?;
        let instance = recipe.pre.instantiate(&mut store);
        let instance = instance.map_err(|e| explain(&recipe.plugin, &store, "instantiate", String::new(), &e))?;
        Ok(Guest { plugin: recipe.plugin, store, instance, plane: recipe.plane, count: recipe.count, dead: None })
    }

    pub(crate) fn plugin(&self) -> &str {
        &self.plugin
    }

    pub(crate) fn limits(&self) -> &LimitConfig {
        &self.store.data().limits
    }

    /// The typed caller of an exported interface.
    pub(crate) fn load<G>(&mut self, f: impl FnOnce(&mut Store<Ctx>, &Instance) -> wasmtime::Result<G>) -> Result<G> {
        f(&mut self.store, &self.instance)
            .map_err(|e| Error::NotAComponent { plugin: self.plugin.clone(), reason: e.to_string() })
    }

    /// Calls without a graph.
    pub(crate) fn call<R>(
        &mut self,
        function: &'static str,
        f: impl FnOnce(StoreContextMut<'_, Ctx>) -> wasmtime::Result<R>,
    ) -> Result<R> {
        self.enter(function)?;
        let answer = f(self.store.as_context_mut());
        answer.map_err(|e| self.fail(function, String::new(), &e))
    }

    /// Calls a function that may give an error back.
    pub(crate) fn ask<R>(
        &mut self,
        function: &'static str,
        f: impl FnOnce(StoreContextMut<'_, Ctx>) -> wasmtime::Result<Result<R, WitError>>,
    ) -> Result<R> {
        let answer = self.call(function, f)?;
        answer.map_err(|e| self.refused(function, e))
    }

    /// Calls with a graph to append to. `finish` turns the guest's answer into nodes while its handles are still valid. The graph comes
    /// back in every case; after an error it holds whatever was traced until then and is fit for dropping only.
    pub(crate) fn traced<R, Out>(
        &mut self,
        function: &'static str,
        graph: &mut Graph,
        loan: Loan,
        f: impl FnOnce(StoreContextMut<'_, Ctx>, &Lent) -> wasmtime::Result<Result<R, WitError>>,
        finish: impl FnOnce(&mut Trace, R) -> Result<Out, Fault>,
    ) -> Result<Out> {
        self.enter(function)?;
        let base = self.store.data().base;
        let nodes = graph.limits.nodes.max(graph.len() as u64);
        if u64::from(base) + nodes + 1 > u64::from(u32::MAX) {
            let message = "this instance has used up all handle numbers; start a new one".to_string();
            return Err(Error::Trap { plugin: self.plugin.clone(), function, scope: String::new(), message });
        }
        let scope = graph.scope();
        let trace = Trace::new(std::mem::take(graph), loan, base);
        self.store.data_mut().trace = Some(trace);
        let answer = f(self.store.as_context_mut(), &Lent(base));
        let where_at = self.store.data().scope().unwrap_or_default();
        let trace = self.store.data_mut().trace.take();
        let mut trace = trace.expect("the trace is only taken here");
        self.store.data_mut().base = trace.next_base();
        let out = match answer {
            Ok(Ok(answer)) => match finish(&mut trace, answer) {
                Ok(out) => Ok(out),
                Err(Fault::Error(e)) => Err(self.answer(function, e.message)),
                Err(Fault::Trap(e)) => Err(self.fail(function, where_at, &e)),
            },
            Ok(Err(e)) => Err(self.refused(function, e)),
            Err(e) => Err(self.fail(function, where_at, &e)),
        };
        *graph = trace.graph;
        graph.set_scope(scope);
        out
    }

    /// An answer that makes no sense.
    pub(crate) fn answer(&self, function: &'static str, message: impl Into<String>) -> Error {
        let message = clean(&message.into(), 1000);
        Error::Answer { plugin: self.plugin.clone(), function, message }
    }

    fn enter(&mut self, function: &'static str) -> Result<()> {
        if let Some(earlier) = &self.dead {
            return Err(Error::Dead { plugin: self.plugin.clone(), function, earlier: earlier.clone() });
        }
        self.count.add();
        let data = self.store.data_mut();
        data.calls = 0;
        data.log.lines = 0;
        data.log.last_warning = None;
        refill(&mut self.store, self.plane).map_err(|e| Error::Engine(e.to_string()))
    }

    fn fail(&mut self, function: &'static str, scope: String, error: &wasmtime::Error) -> Error {
        let error = explain(&self.plugin, &self.store, function, scope, error);
        self.dead = Some(error.to_string());
        error
    }

    fn refused(&self, function: &'static str, e: WitError) -> Error {
        let limit = self.limits().string_bytes;
        Error::Plugin {
            plugin: self.plugin.clone(),
            function,
            code: code_name(e.code),
            message: clean(&e.message, limit),
            scope: clean(&e.where_at.unwrap_or_default(), limit),
            hint: e.hint.map(|h| clean(&h, limit).into()),
        }
    }
}

fn refill(store: &mut Store<Ctx>, plane: Plane) -> wasmtime::Result<()> {
    match plane {
        Plane::Trace => {
            let fuel = store.data().limits.fuel;
            store.set_fuel(fuel)
        }
        Plane::Data => {
            let deadline = ticks(store.data().limits.epoch_ms);
            store.set_epoch_deadline(deadline);
            Ok(())
        }
    }
}

fn explain(plugin: &str, store: &Store<Ctx>, function: &'static str, scope: String, error: &wasmtime::Error) -> Error {
    let ctx = store.data();
    let failure = Failure {
        plugin,
        function,
        scope,
        fuel: ctx.limits.fuel,
        epoch_ms: ctx.limits.epoch_ms,
        stack: ctx.limits.stack,
        handles: ctx.limits.handles,
        hostcall_bytes: ctx.limits.hostcall_bytes,
        last_words: ctx.log.last_warning.clone(),
    };
    failure.explain(error)
}
