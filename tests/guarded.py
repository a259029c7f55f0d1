"""For each module whose checks keep a promise, the files of tests that must fail when one of its checks is changed."""

GUARDED = {
    module: files.split()
    for module, files in {
        "fftmoe.server.screening": (
            "server/test_screening.py server/test_screened_validation.py rounds/test_private_runs.py"
        ),
        "fftmoe.client.screening": "client/test_plans.py",
        "fftmoe.records.wire": "server/test_screening.py",
        "fftmoe.strict": "store/test_hostile_files.py",
        "fftmoe.backbones.trust": "backbones/test_hostile_models.py",
        "fftmoe.backbones.adapter_folder": "backbones/test_hostile_models.py",
        "fftmoe.deploy.link.objects": "deploy/test_flower_objects.py",
        "fftmoe.engines.flower_messages": "engines/test_flower.py deploy/test_gather.py",
        "fftmoe.deploy.files": "deploy/test_deploy_files.py deploy/test_deploy_init.py",
        "fftmoe.deploy.folder": "deploy/test_deploy_files.py deploy/test_deploy_keys.py deploy/test_deploy_init.py",
        "fftmoe.store.privacy_ledger": "store/test_privacy_ledger.py rounds/test_example_privacy.py",
        "fftmoe.store.server_state": "head/test_temperature.py",
        "fftmoe.deploy.job": "deploy/test_job.py",
        "fftmoe.setup.deployment": "deploy/test_sites.py deploy/test_places_of_sites.py tasks/test_target_scales.py",
        "fftmoe.deploy.door": (
            "deploy/test_door_budget.py deploy/test_door.py deploy/test_door_policies.py deploy/test_site_ledger.py"
        ),
        "fftmoe.deploy.ledger": "deploy/test_site_ledger.py",
        "fftmoe.deploy.review": "deploy/test_site_review.py",
        "fftmoe.setup.policy": "deploy/test_door_policies.py",
        "fftmoe.store.chained_log": "store/test_chained_log.py",
        "fftmoe.rounds.example_cost": "rounds/test_example_budget.py",
        "fftmoe.records.release": "records/test_release.py",
        "fftmoe.config.declared": "rounds/test_private_recipes.py tasks/test_target_scales.py",
        "fftmoe.setup.privacy": "rounds/test_private_recipes.py rounds/test_replaced_accounts.py",
    }.items()
}

# The modules behind a site's door, the accounts of privacy, the bindings of a run, the one reader of data, and what is
# told about results. Their branches, comparisons and bounds are changed as well (`mutate_all.py`).
CHANGED = {
    module: files.split()
    for module, files in {
        "fftmoe.deploy.door": (
            "deploy/test_door_rows.py deploy/test_door_budget.py deploy/test_door.py deploy/test_door_policies.py "
            "deploy/test_site_ledger.py"
        ),
        "fftmoe.setup.policy": (
            "setup/test_policy_limits.py deploy/test_door.py deploy/test_door_policies.py deploy/test_site_review.py"
        ),
        "fftmoe.setup.consent": "setup/test_policy_limits.py deploy/test_door.py deploy/test_site_review.py",
        "fftmoe.setup.site_request": "setup/test_site_request.py deploy/test_door.py deploy/test_site_review.py",
        "fftmoe.deploy.review": "deploy/test_review_words.py deploy/test_site_review.py",
        "fftmoe.store.chained_log": "store/test_chained_log.py",
        "fftmoe.deploy.ledger": (
            "deploy/test_ledger_entries.py deploy/test_site_ledger.py deploy/test_outside_mark.py"
        ),
        "fftmoe.deploy.account": "deploy/test_site_ledger.py deploy/test_door.py",
        "fftmoe.deploy.gather": "deploy/test_gather.py",
        "fftmoe.deploy.job": "deploy/test_job.py",
        "fftmoe.deploy.link.gate": "deploy/test_gate.py",
        "fftmoe.store.bindings": ("store/test_binding_words.py setup/test_binding_laws.py"),
        "fftmoe.setup.bindings": "setup/test_binding_rules.py setup/test_binding_values.py setup/test_bound_runs.py",
        "fftmoe.store.owner": "store/test_owner_notes.py",
        "fftmoe.store.rows": "store/test_rows.py",
        "fftmoe.data.read": (
            "data/test_split_folders.py data/test_reader.py data/test_data_sources.py data/test_columns.py"
        ),
        "fftmoe.data.columns": "data/test_columns.py data/test_reader.py data/test_data_sources.py",
        "fftmoe.data.csv_files": "data/test_reader.py data/test_data_sources.py",
        "fftmoe.data.json_lines": "data/test_json_columns.py data/test_reader.py data/test_data_sources.py",
        "fftmoe.data.text_files": "data/test_reader.py trained/test_answers.py",
        "fftmoe.data.parquet_files": "data/test_columns.py data/test_reader.py data/test_data_sources.py",
        "fftmoe.data.hub": "data/test_hub.py",
        "fftmoe.data.declared": "data/test_declared.py",
        "fftmoe.data.names": "data/test_name_spelling.py",
        "fftmoe.data.labels": "data/test_label_numbers.py",
        "fftmoe.data.unlabelled": "data/test_given_texts.py data/test_given_images.py trained/test_answers.py",
        "fftmoe.data.lost": "data/test_lost.py data/test_lost_pairs.py",
        "fftmoe.data.learnable": "data/test_learnable.py",
        "fftmoe.setup.target_scales": "setup/test_scale_rules.py tasks/test_target_scales.py",
        "fftmoe.backbones.finite": "tasks/test_not_finite.py rounds/test_outcome.py trained/test_predict.py",
        "fftmoe.backbones.positions": "backbones/test_positions.py",
        "fftmoe.rounds.outcome": "rounds/test_outcome.py",
        "fftmoe.report.verdict": "rounds/test_outcome.py report/test_report.py",
        "fftmoe.adapter.bound": "adapter/test_adapter_binding.py backbones/test_bound_adapters.py",
        "fftmoe.comparison.bound": "comparison/test_comparison_binding.py comparison/test_bound_comparisons.py",
        "fftmoe.engines.failures": "engines/test_failure_words.py deploy/test_site_reveals_nothing.py",
        "fftmoe.engines.main_module": "engines/test_main_module.py",
        "fftmoe.records.release": "records/test_release.py",
        "fftmoe.server.accountant": "server/test_calibration.py server/test_accountant.py",
        "fftmoe.store.privacy_ledger": "store/test_privacy_ledger.py",
        "fftmoe.rounds.counted": "rounds/test_replaced_accounts.py",
        "fftmoe.rounds.private": "rounds/test_round_sums.py",
        "fftmoe.rounds.policy": "rounds/test_round_policy.py",
        "fftmoe.rounds.example_cost": "rounds/test_example_budget.py",
        "fftmoe.client.example_privacy": "client/test_example_steps.py",
        "fftmoe.setup.privacy": "setup/test_private_merging.py rounds/test_private_recipes.py",
        "fftmoe.config.declared": "config/test_declared_recipes.py",
    }.items()
}
