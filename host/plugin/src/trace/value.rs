//! Values, params, states: looking at them and reading storage.

use swift_graph::{Target, op};
use wasmtime::component::Resource;

use super::{Ctx, Fault, Traced};
use crate::bindings::tensor::graph::{
    Builder, Dtype, Host, HostKvCache, HostParam, HostState, HostValue, KvCache, Param, State, Value,
};
use crate::bindings::tensor::types::Dim as WitDim;
use crate::decl::dtype_out;

impl Host for Ctx {}

impl HostValue for Ctx {
    fn dtype(&mut self, value: Resource<Value>) -> wasmtime::Result<Dtype> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let node = trace.node(&value).map_err(Fault::into_trap)?;
        Ok(dtype_out(trace.graph.ty(node).dtype))
    }

    fn shape(&mut self, value: Resource<Value>) -> wasmtime::Result<Vec<WitDim>> {
        let limit = self.limits.dims;
        let trace = self.trace().map_err(Fault::into_trap)?;
        let node = trace.node(&value).map_err(Fault::into_trap)?;
        let shape = trace.graph.ty(node).shape.clone();
        trace.shape_out(&shape, limit).map_err(Fault::into_trap)
    }

    fn dup(&mut self, value: Resource<Value>) -> wasmtime::Result<Resource<Value>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let node = trace.node(&value).map_err(Fault::into_trap)?;
        Ok(trace.value(node))
    }

    fn drop(&mut self, _: Resource<Value>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl HostParam for Ctx {
    fn name(&mut self, param: Resource<Param>) -> wasmtime::Result<String> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let id = trace.param_id(&param).map_err(Fault::into_trap)?;
        Ok(trace.graph.params()[id.index()].name.clone())
    }

    fn shape(&mut self, param: Resource<Param>) -> wasmtime::Result<Vec<WitDim>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let id = trace.param_id(&param).map_err(Fault::into_trap)?;
        Ok(trace.graph.params()[id.index()].shape.iter().map(|&d| WitDim::Fixed(d)).collect())
    }

    fn read(&mut self, param: Resource<Param>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let node = trace.param_node(&param)?;
        trace.push(op::Read, &[node])
    }

    fn drop(&mut self, _: Resource<Param>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl HostState for Ctx {
    fn read(&mut self, state: Resource<State>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let id = trace.state_id(&state)?;
        let node = trace.graph.read_state(id)?;
        Ok(trace.value(node))
    }

    fn write(&mut self, state: Resource<State>, g: Resource<Builder>, v: Resource<Value>) -> Traced<()> {
        let nodes = self.limits.nodes;
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (id, node) = (trace.state_id(&state)?, trace.node(&v)?);
        let effects = trace.graph.effects.len() as u64 + 1;
        crate::limits::LimitHit::check("nodes", nodes, effects, || "writes count as nodes".into())?;
        Ok(trace.graph.write(Target::State(id), node, false)?)
    }

    fn drop(&mut self, _: Resource<State>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl HostKvCache for Ctx {
    fn drop(&mut self, _: Resource<KvCache>) -> wasmtime::Result<()> {
        Ok(())
    }
}
