//! Generated bindings of everything the host lends. The kinds' modules generate their exports on top, with these types.
#![allow(missing_docs, clippy::undocumented_unsafe_blocks, reason = "generated code; the WIT files document it")]

wit_bindgen::generate!({
    path: ["../../wit/tensor-0.1.0", "../../wit/plugin-0.1.0"],
    inline: "
        package swift:sdk;
        world host {
            import swift:tensor/types@0.1.0;
            import swift:tensor/graph@0.1.0;
            import swift:tensor/lm-head@0.1.0;
            import swift:plugin/env@0.1.0;
            import swift:plugin/decl@0.1.0;
            import swift:plugin/trace-host@0.1.0;
            import swift:plugin/sample-types@0.1.0;
        }
    ",
    world: "swift:sdk/host",
    generate_all,
    generate_unused_types: true,
});

/// Generates one kind's export over the shared types, as a public macro for [`crate::plugin!`]. The first word says which shared
/// types its world reaches, for `generate!` refuses mappings it does not need.
macro_rules! export_world {
    (traced $($rest:tt)*) => {
        export_world! { {
            "swift:tensor/types@0.1.0": crate::bindings::swift::tensor::types,
            "swift:tensor/graph@0.1.0": crate::bindings::swift::tensor::graph,
            "swift:tensor/lm-head@0.1.0": crate::bindings::swift::tensor::lm_head,
            "swift:plugin/decl@0.1.0": crate::bindings::swift::plugin::decl,
            "swift:plugin/trace-host@0.1.0": crate::bindings::swift::plugin::trace_host,
        } $($rest)* }
    };
    (sampler $($rest:tt)*) => {
        export_world! { {
            "swift:tensor/types@0.1.0": crate::bindings::swift::tensor::types,
            "swift:tensor/graph@0.1.0": crate::bindings::swift::tensor::graph,
        } $($rest)* }
    };
    (data $($rest:tt)*) => {
        export_world! { {
            "swift:tensor/types@0.1.0": crate::bindings::swift::tensor::types,
            "swift:plugin/sample-types@0.1.0": crate::bindings::swift::plugin::sample_types,
        } $($rest)* }
    };
    (plain $($rest:tt)*) => {
        export_world! { {} $($rest)* }
    };
    ($with:tt $inline:literal, $world:literal, $module:literal, $macro:literal) => {
        mod generated {
            #![allow(missing_docs, clippy::undocumented_unsafe_blocks, reason = "generated code; the WIT files document it")]

            wit_bindgen::generate!({
                path: ["../../wit/tensor-0.1.0", "../../wit/plugin-0.1.0"],
                inline: $inline,
                world: $world,
                with: $with,
                pub_export_macro: true,
                default_bindings_module: $module,
                export_macro_name: $macro,
            });
        }
        #[doc(hidden)]
        pub use generated::*;
    };
}
pub(crate) use export_world;
