//! `site`, `batch` and `step-io`: values that already exist and are lent to a plugin for one call.

use swift_graph::op;
use wasmtime::component::Resource;

use super::{Ctx, Fault, Role, Trace, Traced};
use crate::bindings::host::decl::{Host as DeclHost, ParamInfo, SiteInfo};
use crate::bindings::host::sample_types::Host as SampleTypesHost;
use crate::bindings::host::trace_host::{Batch, Host, HostBatch, HostSite, HostStepIo, Site, StepIo};
use crate::bindings::tensor::graph::{Builder, Param, State, Value};
use crate::bindings::tensor::lm_head::Head as HeadResource;
use crate::bindings::tensor::types::Dim as WitDim;
use crate::decl::{SiteBinding, StepBinding, dense};

impl Host for Ctx {}
impl DeclHost for Ctx {}
impl SampleTypesHost for Ctx {}

fn find<'a, T: Copy>(list: &'a [(String, T)], kind: &str, name: &str) -> Traced<T> {
    let found = list.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
    found.ok_or_else(|| Fault::missing(kind, name, list.iter().map(|(n, _): &'a (String, T)| n.as_str())))
}

impl Trace {
    fn site(&self, site: &Resource<Site>) -> Traced<&SiteBinding> {
        self.index(site.rep(), 1, "site")?;
        match &self.role {
            Role::Site(s) => Ok(s),
            _ => Err(Fault::trap("uses a site outside a tuner's trace")),
        }
    }

    fn step(&self, step: &Resource<StepIo>) -> Traced<&StepBinding> {
        self.index(step.rep(), 1, "step-io")?;
        match &self.role {
            Role::Step(s) => Ok(s),
            _ => Err(Fault::trap("uses a step outside an optimizer's trace")),
        }
    }

    fn batch(&self, batch: &Resource<Batch>) -> Traced<(Option<u32>, Option<u32>)> {
        self.index(batch.rep(), 1, "batch")?;
        match &self.role {
            Role::Batch { reference, teacher, .. } => Ok((*reference, *teacher)),
            _ => Err(Fault::trap("uses a batch outside a loss trace")),
        }
    }
}

impl HostSite for Ctx {
    fn info(&mut self, site: Resource<Site>) -> wasmtime::Result<SiteInfo> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let site = trace.site(&site).map_err(Fault::into_trap)?;
        Ok((&site.info).into())
    }

    fn x(&mut self, site: Resource<Site>) -> wasmtime::Result<Resource<Value>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let x = trace.site(&site).map_err(Fault::into_trap)?.x;
        Ok(trace.value(x))
    }

    fn base(&mut self, site: Resource<Site>, g: Resource<Builder>, x: Resource<Value>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let x = trace.node(&x)?;
        let (weight, bias) = {
            let s = trace.site(&site)?;
            (s.weight, s.bias)
        };
        let mut inputs = vec![x, weight];
        inputs.extend(bias);
        trace.push(op::Linear { bias: bias.is_some(), ..op::Linear::plain() }, &inputs)
    }

    fn weight(&mut self, site: Resource<Site>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let weight = trace.site(&site)?.weight;
        let node = dense(&mut trace.graph, weight)?;
        Ok(trace.value(node))
    }

    fn bias(&mut self, site: Resource<Site>, g: Resource<Builder>) -> Traced<Option<Resource<Value>>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let Some(bias) = trace.site(&site)?.bias else { return Ok(None) };
        let node = dense(&mut trace.graph, bias)?;
        Ok(Some(trace.value(node)))
    }

    fn param(&mut self, site: Resource<Site>, name: String) -> Traced<Resource<Param>> {
        let trace = self.trace()?;
        let id = find(&trace.site(&site)?.params, "parameter of this site", &name)?;
        Ok(trace.lend_param(id))
    }

    fn common(&mut self, site: Resource<Site>, name: String) -> Traced<Resource<Param>> {
        let trace = self.trace()?;
        let id = find(&trace.site(&site)?.common, "common parameter", &name)?;
        Ok(trace.lend_param(id))
    }

    fn drop(&mut self, _: Resource<Site>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl HostBatch for Ctx {
    fn policy(&mut self, batch: Resource<Batch>) -> wasmtime::Result<Resource<HeadResource>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        trace.batch(&batch).map_err(Fault::into_trap)?;
        // The policy is always the first head.
        Ok(trace.root())
    }

    fn reference(&mut self, batch: Resource<Batch>) -> wasmtime::Result<Option<Resource<HeadResource>>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let (reference, _) = trace.batch(&batch).map_err(Fault::into_trap)?;
        Ok(reference.map(|i| Resource::new_own(trace.rep(i))))
    }

    fn teacher(&mut self, batch: Resource<Batch>) -> wasmtime::Result<Option<Resource<HeadResource>>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let (_, teacher) = trace.batch(&batch).map_err(Fault::into_trap)?;
        Ok(teacher.map(|i| Resource::new_own(trace.rep(i))))
    }

    fn dim(&mut self, batch: Resource<Batch>, name: String) -> Traced<WitDim> {
        let trace = self.trace()?;
        trace.batch(&batch)?;
        trace.named_dim(&name)
    }

    fn field(&mut self, batch: Resource<Batch>, name: String) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.batch(&batch)?;
        let Role::Batch { fields, .. } = &trace.role else { return Err(Fault::trap("no batch")) };
        let node = find(fields, "field", &name)?;
        Ok(trace.value(node))
    }

    fn total(&mut self, batch: Resource<Batch>, name: String) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.batch(&batch)?;
        let Role::Batch { totals, .. } = &trace.role else { return Err(Fault::trap("no batch")) };
        let node = find(totals, "total", &name)?;
        Ok(trace.value(node))
    }

    fn drop(&mut self, _: Resource<Batch>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl HostStepIo for Ctx {
    fn info(&mut self, step: Resource<StepIo>) -> wasmtime::Result<ParamInfo> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let step = trace.step(&step).map_err(Fault::into_trap)?;
        Ok((&step.info).into())
    }

    fn grad(&mut self, step: Resource<StepIo>) -> wasmtime::Result<Resource<Value>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let grad = trace.step(&step).map_err(Fault::into_trap)?.grad;
        Ok(trace.value(grad))
    }

    fn weight(&mut self, step: Resource<StepIo>) -> wasmtime::Result<Resource<Value>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let weight = trace.step(&step).map_err(Fault::into_trap)?.weight;
        let node = dense(&mut trace.graph, weight).map_err(|e| Fault::from(e).into_trap())?;
        Ok(trace.value(node))
    }

    fn slot(&mut self, step: Resource<StepIo>, name: String) -> Traced<Resource<State>> {
        let trace = self.trace()?;
        let id = find(&trace.step(&step)?.slots, "slot", &name)?;
        Ok(trace.lend_state(id))
    }

    fn scalar(&mut self, step: Resource<StepIo>, name: String) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        let node = find(&trace.step(&step)?.scalars, "scalar", &name)?;
        Ok(trace.value(node))
    }

    fn drop(&mut self, _: Resource<StepIo>) -> wasmtime::Result<()> {
        Ok(())
    }
}
