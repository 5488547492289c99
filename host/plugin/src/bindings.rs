//! What `bindgen!` makes of the WIT: host traits for the interfaces that the host implements, typed callers for those that plugins
//! export. Every export interface is probed on its own, so no component has to match one world.

wasmtime::component::bindgen!({
    inline: "
        package swift:host;
        world everything {
            import swift:tensor/types@0.1.0;
            import swift:tensor/graph@0.1.0;
            import swift:tensor/lm-head@0.1.0;
            import swift:plugin/env@0.1.0;
            import swift:plugin/decl@0.1.0;
            import swift:plugin/trace-host@0.1.0;
            import swift:plugin/sample-types@0.1.0;
            export swift:plugin/about@0.1.0;
            export swift:plugin/model@0.1.0;
            export swift:plugin/peft@0.1.0;
            export swift:plugin/loss@0.1.0;
            export swift:plugin/optimizer@0.1.0;
            export swift:plugin/dataset@0.1.0;
            export swift:plugin/sampler@0.1.0;
        }
    ",
    path: ["../../wit/tensor-0.1.0", "../../wit/plugin-0.1.0"],
    world: "swift:host/everything",
    imports: { default: trappable },
    trappable_error_type: { "swift:tensor/types@0.1.0.error" => crate::trace::Fault },
});

pub(crate) use self::exports::swift::plugin as guest;
pub(crate) use self::swift::plugin as host;
pub(crate) use self::swift::tensor;
