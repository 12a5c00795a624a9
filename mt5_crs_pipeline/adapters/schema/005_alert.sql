-- What was told to people, so that nothing is told twice in a day.

create table alert (
    key text not null,
    sent_at timestamptz not null default clock_timestamp()
);

create index alert_key on alert (key, sent_at);

comment on table alert is 'Alerts that were sent, or tried to be, by what they were about; append-only';

create trigger alert_refuse_change before update or delete or truncate on alert
    for each statement execute function model_refuse_change();
