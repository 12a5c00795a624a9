-- What was tried, what was judged and which model answered when: none of it is ever changed or taken back.

-- One row per distinct recipe: what the threshold of the evidence is raised for.
create table model_trial (
    timeframe text not null references market_data_timeframe,
    recipe_hash text not null,
    recipe jsonb not null,
    first_tried_at timestamptz not null default clock_timestamp(),
    primary key (timeframe, recipe_hash)
);

create table model_verdict (
    number bigint generated always as identity primary key,
    timeframe text not null references market_data_timeframe,
    model_version text not null,
    bundle_hash text not null,
    promoted boolean not null,
    reason text not null,
    evidence jsonb not null,
    judged_at timestamptz not null default clock_timestamp()
);

create index model_verdict_version on model_verdict (timeframe, model_version, number);

create table model_champion_change (
    number bigint generated always as identity primary key,
    timeframe text not null references market_data_timeframe,
    model_version text not null,
    bundle_hash text not null,
    how text not null check (how in ('promoted', 'rolled back')),
    at timestamptz not null
);

comment on table model_trial is 'Recipes tried on the bars of a timeframe, each once; append-only';
comment on table model_verdict is 'Promotion verdicts, promoted or not, with their evidence; append-only';
comment on table model_champion_change is 'Which model answered from when on; append-only';
comment on column model_verdict.bundle_hash is 'SHA-256 of the bundle''s SHA256SUMS';
comment on column model_champion_change.bundle_hash is 'SHA-256 of the bundle''s SHA256SUMS';

create function model_refuse_change() returns trigger
language plpgsql as $$
begin
    raise exception '% is append-only: % is refused', tg_table_name, tg_op using errcode = 'restrict_violation';
end
$$;

create trigger model_trial_refuse_change before update or delete or truncate on model_trial
    for each statement execute function model_refuse_change();
create trigger model_verdict_refuse_change before update or delete or truncate on model_verdict
    for each statement execute function model_refuse_change();
create trigger model_champion_change_refuse_change before update or delete or truncate on model_champion_change
    for each statement execute function model_refuse_change();
