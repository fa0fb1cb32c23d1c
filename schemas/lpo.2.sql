-- Version 2 of lpo.sql's database: views for the questions of lpo-db(5).

-- Figures over the steps, with the run they belong to by its id.
CREATE VIEW curve AS
    SELECT run.run, run.tool, metric.name, metric.step, metric.value
    FROM metric JOIN run ON run.id = metric.run_id;

-- What runs wrote: outputs and published checkpoints, and the command typed.
CREATE VIEW made AS
    SELECT run.output AS path, run.run, run.tool, run.status,
        (SELECT argv FROM attempt WHERE attempt.run_id = run.id
         ORDER BY attempt.id DESC LIMIT 1) AS argv
    FROM run WHERE run.output IS NOT NULL
    UNION ALL
    SELECT checkpoint.path, run.run, run.tool, run.status,
        (SELECT argv FROM attempt WHERE attempt.run_id = run.id
         ORDER BY attempt.id DESC LIMIT 1)
    FROM checkpoint JOIN run ON run.id = checkpoint.run_id
    WHERE checkpoint.path IS NOT run.output;

-- Each compared prompt: mean score of the system less that of the base.
CREATE VIEW prompt_change AS
    SELECT run.run, result.scorer, s.name AS system, b.name AS base,
        i.prompt, count(*) AS n_images, avg(x.value) AS base_score,
        avg(y.value) AS system_score, avg(y.value - x.value) AS change
    FROM result JOIN run ON run.id = result.run_id
    JOIN system s ON s.id = result.system_id
    JOIN system b ON b.id = result.base_id
    JOIN image i ON i.system_id = s.id
    JOIN image j ON j.system_id = b.id AND j.key = i.key
    JOIN score y ON y.image_id = i.id AND y.scorer = result.scorer
    JOIN score x ON x.image_id = j.id AND x.scorer = result.scorer
    GROUP BY result.id, i.prompt_index;

-- The options of each run, one a row.
CREATE VIEW option AS
    SELECT run.run, run.tool, o.key AS name, o.value
    FROM run, json_each(run.options) o;
