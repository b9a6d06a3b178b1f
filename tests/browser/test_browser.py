"""A model's life as a person steers it in a browser: its form, its approval, its page, its reports, its connections.

One Airflow with all its components serves all of these tests, which follow each other: what one has started the next
goes on with. With SML_PICTURES=FOLDER they also take the pictures of the documentation, light and dark.
"""

import json
import os
import re
from pathlib import Path

import pytest

from airflow_provider_sml.ml.registry import CHAMPION, Registry
from tests.browser.conftest import DAYS, WATCHED

#: The start of a whole Airflow is part of the first test, and takes minutes on a machine that is busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PICTURES = os.environ.get("SML_PICTURES")
TRAIN, DEPLOY, MONITOR, LINEAGE = (f"orders_{stage}" for stage in ("train", "deploy", "monitor", "lineage"))
STATE = {}


@pytest.fixture(scope="module")
def visit(browser, stack):
    """Airflow as a user who has logged in through its page; one window for each."""
    windows = {}

    def of(user):
        if user not in windows:
            context = browser.new_context(viewport={"width": 1440, "height": 1000}, color_scheme="light")
            context.set_default_timeout(60_000)
            window = context.new_page()
            window.goto(stack.url)
            window.get_by_label("Username").fill(user)
            window.get_by_label("Password").fill(stack.passwords[user])
            window.get_by_role("button", name="Sign in").click()
            window.get_by_text("Welcome").first.wait_for()
            windows[user] = window
        return windows[user]

    return of


def shoot(window, name):
    """Take a picture in both themes where pictures are asked for."""
    if not PICTURES:
        return
    folder = Path(PICTURES)
    folder.mkdir(parents=True, exist_ok=True)
    window.mouse.move(1439, 999)
    for theme in ("dark", "light"):
        window.evaluate(
            "theme => { const own = document.documentElement; own.className = theme; own.style.colorScheme = theme; }",
            theme,
        )
        window.wait_for_timeout(600)
        window.screenshot(path=str(folder / f"{name}-{theme}.png"))


def models(window, stack):
    """The page Models in Airflow's own; gives the frame that holds it."""
    window.goto(f"{stack.url}/plugin/models")
    return window.frame_locator("iframe").first


def words(frame, selector="body"):
    return " ".join(frame.locator(selector).inner_text().split())


def test_training_is_started_from_its_form_with_a_parameter(visit, stack):
    window = visit("admin")
    window.goto(f"{stack.url}/dags/{TRAIN}")
    window.get_by_role("button", name="Trigger").first.click()
    form = window.get_by_role("dialog")
    form.get_by_text("Share of the shop, all rows of each, to train on; 1 for all.").wait_for()
    rate = form.locator("[name=element_rate]")
    assert rate.input_value() == "0.8"
    rate.fill("0.9")
    rate.press("Tab")
    form.get_by_text("Where the workers run (local: in the task's own process; ").wait_for()
    shoot(window, "train")
    form.get_by_role("button", name="Trigger").click()

    def started():
        return stack.call(f"/api/v2/dags/{TRAIN}/dagRuns")[1]["dag_runs"]

    [run] = stack.until(started, "a run")
    assert run["conf"] == {"as_of": None, "rate": 0.9, "cluster": "local"} and run["triggering_user_name"] == "admin"
    STATE["run"] = run["dag_run_id"]


@pytest.fixture(scope="module")
def scheduler():
    """A Dask scheduler without workers; gives its port."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address=None, host="127.0.0.1", protocol="tcp") as dask:
        yield dask.scheduler.port


def test_connections_have_forms_and_a_button_that_tests_them(visit, stack, scheduler):
    window = visit("admin")
    # Port 0: without a port Airflow's button refuses; see get_provider_info.
    lake, other = str(stack.root / "lake"), str(stack.root / "other")
    add(window, stack, "sml_lake", "SML lake", {"port": "0", "element_location": lake}, "/lake: 1 tables")
    add(window, stack, "mlflow", "MLflow", {"port": "0", "element_tracking_uri": other}, "/other: 0 registered models")
    dask = {"host": "127.0.0.1", "port": str(scheduler)}
    add(window, stack, "dask", "Dask scheduler or gateway", dask, f":{scheduler}: 0 workers")


def add(window, stack, kind, title, fields, said):
    """Add a connection by its form, and test it by its button."""
    window.goto(f"{stack.url}/connections")
    window.get_by_role("button", name="Add Connection").click()
    form = window.get_by_role("dialog")
    form.locator("[name=connection_id]").fill(f"my_{kind}")
    form.get_by_role("combobox").first.fill(title)
    window.get_by_role("option", name=title, exact=True).click()
    for name, value in sorted(fields.items(), key=lambda item: item[0].startswith("element_")):
        if name.startswith("element_"):
            form.get_by_text("Extra Fields", exact=True).click()
        form.locator(f"[name={name}]").fill(value)
    form.get_by_role("button", name="Save").click()
    row = window.get_by_role("row").filter(has_text=f"my_{kind}")
    row.get_by_role("button", name="Test Connection").click()
    window.get_by_text(said).wait_for()  # the message goes by itself after some seconds
    assert stack.call(f"/api/v2/connections/my_{kind}")[1]["conn_type"] == kind


def test_what_waits_stands_on_the_page_and_who_triggered_it_cannot_approve(visit, stack):
    run = STATE["run"]

    def asked():
        tasks = stack.tasks(TRAIN, run)
        assert "failed" not in tasks.values(), f"{tasks}\n{stack.logs(TRAIN)}"
        return tasks.get("approve") in ("awaiting_input", "deferred")

    stack.until(asked, "the question")
    window = visit("admin")
    frame = models(window, stack)
    row = frame.get_by_role("row").filter(has_text="orders")
    row.get_by_text("1 for approval").wait_for()
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("heading", name="Waits for approval").wait_for()
    waits = words(frame, "#waits")
    assert "Deploy orders version 1?" in waits and "ann" in waits and "admin" not in waits.replace("manual", "")
    address = f"/api/v2/dags/{TRAIN}/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
    body = {"chosen_options": ["Approve"], "params_input": {}}
    assert stack.call(address, body, "PATCH")[0] == 403
    assert stack.call(address, body, "PATCH", user="vera")[0] == 403
    assert Registry(str(stack.root / "mlflow")).version("orders", alias=CHAMPION) is None


def test_another_person_approves_in_airflows_form_and_the_alias_moves(visit, stack):
    window = visit("ann")
    frame = models(window, stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("link", name="answer").click()
    window.wait_for_url(re.compile("/tasks/approve/required_actions"))
    window.get_by_text("Deploy orders version 1?").first.wait_for()
    assert "lower end at least 0.6" in window.locator("body").inner_text()
    window.locator("[name=element_comment]").fill("good figures")
    shoot(window, "approval")
    window.get_by_role("button", name="Approve").click()

    def ended():
        state = stack.call(f"/api/v2/dags/{TRAIN}/dagRuns/{STATE['run']}")[1]["state"]
        assert state != "failed"
        return state == "success"

    stack.until(ended, "the end of the training")
    deployed = stack.until(lambda: stack.call(f"/api/v2/dags/{DEPLOY}/dagRuns")[1]["dag_runs"], "the deployment")
    run = deployed[0]["dag_run_id"]
    stack.until(lambda: stack.tasks(DEPLOY, run).get("deploy") in ("success", "failed"), "the deployment's end")
    registry = Registry(str(stack.root / "mlflow"))
    champion = registry.version("orders", alias=CHAMPION)
    assert champion is not None and champion.version == "1"
    tags = registry.tags(champion)
    told = (tags["approval"], tags["approval_by"], tags["approval_comment"])
    assert told == ("approved", "ann", "good figures")
    STATE["auc"], STATE["deployment"] = tags["auc"], run


def test_nights_are_looked_at_by_the_days_of_the_form(visit, stack):
    window = visit("admin")
    window.goto(f"{stack.url}/dags/{MONITOR}")
    window.get_by_role("button", name="Trigger").first.click()
    form = window.get_by_role("dialog")
    for name, day in (("day", DAYS[-WATCHED]), ("last_day", DAYS[-1])):
        form.locator(f"[name=element_{name}]").fill(str(day))
    form.get_by_text("as decided").wait_for()
    form.get_by_role("button", name="Trigger").click()
    [run] = stack.until(lambda: stack.call(f"/api/v2/dags/{MONITOR}/dagRuns")[1]["dag_runs"], "the monitor's run")
    assert run["conf"] == {"day": str(DAYS[-WATCHED]), "last_day": str(DAYS[-1]), "retraining": None}
    STATE["monitor"] = run["dag_run_id"]


def test_a_dry_run_of_the_deployment_changes_nothing(visit, stack):
    registry = Registry(str(stack.root / "mlflow"))
    before = registry.tags(registry.version("orders", alias=CHAMPION))
    window = visit("admin")
    window.goto(f"{stack.url}/dags/{DEPLOY}")
    window.get_by_role("button", name="Trigger").first.click()
    form = window.get_by_role("dialog")
    form.get_by_text("Dry run").first.wait_for()
    form.locator("label[id='switch:element_dry_run']").click()
    shoot(window, "form")
    version = form.locator("[name=element_version]")
    version.fill("v1")
    version.press("Tab")
    form.get_by_role("button", name="Trigger").click()
    form.get_by_text("Invalid input for param version: 'v1' does not match").wait_for()
    version.fill("")
    version.press("Tab")
    form.get_by_role("button", name="Trigger").press("Enter")  # what says why lies over the button for some seconds

    def runs():
        found = stack.call(f"/api/v2/dags/{DEPLOY}/dagRuns?order_by=-run_after")[1]["dag_runs"]
        return [run for run in found if run["dag_run_id"] != STATE["deployment"]]

    run = stack.until(runs, "the dry run")[0]
    assert run["conf"] == {"version": None, "target": "local", "dry_run": True}
    stack.until(lambda: stack.tasks(DEPLOY, run["dag_run_id"]).get("deploy") == "skipped", "the end of the dry run")
    assert registry.tags(registry.version("orders", alias=CHAMPION)) == before


def test_the_page_says_what_is_live_and_why(visit, stack):
    def ended():
        tasks = stack.tasks(MONITOR, STATE["monitor"])
        assert "failed" not in tasks.values(), f"{tasks}\n{stack.logs(MONITOR)}"
        return set(tasks.values()) == {"success"}

    stack.until(ended, "the nights")
    window = visit("admin")
    frame = models(window, stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("heading", name="Live").wait_for()
    live = words(frame, "#live")
    assert "On this machine serving" in live and "version 1 100 %" in live and "not spot" in live
    versions = words(frame, "#versions")
    assert f"{float(STATE['auc']):.3f} [" in versions and "champion" in versions and "approved by ann" in versions
    assert "Nothing waits for anybody." in words(frame, "#waits")
    assert "champion none → 1" in words(frame, "#history")
    assert "of the last 90 nights drifted" in words(frame, "#nights")
    assert frame.locator("#nights rect.heat").count() > 60 * 5
    shoot(window, "model")
    frame.get_by_role("heading", name="Nights").scroll_into_view_if_needed()
    frame.locator("#nights").evaluate("section => section.scrollIntoView()")
    shoot(window, "nights")
    frame.locator("#versions").evaluate("section => section.scrollIntoView()")
    shoot(window, "versions")
    frame.locator("#costs").evaluate("section => section.scrollIntoView()")
    shoot(window, "costs")
    run = frame.locator("#versions").get_by_role("link", name=re.compile("UTC")).first
    assert run.get_attribute("href") == f"/dags/{TRAIN}/runs/{STATE['run']}".replace(":", "%3A").replace("+", "%2B")
    run.click()
    window.wait_for_url(re.compile(f"/dags/{TRAIN}/runs/"))


def test_a_night_opens_evidentlys_report_in_a_cage(visit, stack):
    window = visit("admin")
    frame = models(window, stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.locator(f"#nights a[aria-label='{DAYS[-1]}: drift']").first.click()
    report = frame.frame_locator("iframe.report")
    report.get_by_text("rain").first.wait_for()
    [inner] = [one for one in window.frames if f"/nights/{DAYS[-1]}/report.html" in one.url]
    assert inner.evaluate("window.origin") == "null"
    assert inner.evaluate("(() => { try { return document.cookie } catch (error) { return error.name } })()") == (
        "SecurityError"
    )
    shoot(window, "report")


def told(stack, kind, key, file):
    """The numbers of a report, as they lie in the folder."""
    return json.loads((stack.root / "reports" / "orders" / kind / key / file).read_text())


def test_the_page_shows_how_each_night_performed_and_what_was_decided(visit, stack):
    night, before = (told(stack, "performance", "", f"{day}.json") for day in (DAYS[-1], DAYS[-2]))
    [estimated], realised = night["estimated"], {one["day"]: one for one in night["realised"]}
    assert list(realised) == [str(day) for day in DAYS[-WATCHED:-1]] and before["realised"] == night["realised"][:-1]
    window = visit("admin")
    frame = models(window, stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("heading", name="Nights").wait_for()
    last, earlier = (frame.locator("#nights tbody tr").nth(place).inner_text() for place in (0, 1))
    assert f"{estimated['auc']:.3f} [{estimated['auc_low']:.3f}, {estimated['auc_high']:.3f}]" in last
    assert "drift" in last and "rain" in last and "train again" in last
    one = realised[str(DAYS[-2])]
    shown = f"{one['auc']:.3f} [{one['auc_low']:.3f}, {one['auc_high']:.3f}]"
    assert shown in earlier and "nothing" in earlier
    drawn = frame.locator("#nights g.realised title").all_text_contents()
    assert (
        f"{DAYS[-2]}: AUC {one['auc']:.3f} [{one['auc_low']:.3f}, {one['auc_high']:.3f}], realised, version 1" in drawn
    )

    frame.locator("#nights tbody tr").first.get_by_role("link", name="performance").click()
    report = frame.frame_locator("iframe.report")
    report.get_by_role("heading", name=f"orders: performance, night of {DAYS[-1]}").wait_for()
    table = report.locator("table").nth(1)
    assert table.locator("tbody tr").count() == WATCHED - 1
    cells = table.locator("tbody tr").first.locator("td").all_text_contents()
    assert cells[:4] == [one["day"], str(one["rows"]), "100%", shown]
    back = "() => getComputedStyle(document.body).backgroundColor"
    [inner] = [one for one in window.frames if "/report.html" in one.url]
    assert inner.evaluate(back) == "rgb(255, 255, 255)"
    window.evaluate("document.documentElement.className = 'dark'")
    stack.until(lambda: inner.evaluate(back) == "rgb(17, 17, 17)", "the report in Airflow's theme", within=10)
    window.evaluate("document.documentElement.className = 'light'")
    shoot(window, "performance")

    frame.get_by_role("link", name="← orders").click()
    frame.locator("#nights tbody tr").first.get_by_role("link", name="train again").click()
    report.get_by_role("heading", name=f"orders: decision, night of {DAYS[-1]}").wait_for()
    decision = told(stack, "decisions", "", f"{DAYS[-1]}.json")["decision"]
    assert decision["because"] in words(report) and decision["causes"][0]["feature"] == "rain"
    assert f"rain {decision['causes'][0]['weight']:.0%}" in words(report, "table >> nth=1")
    shoot(window, "decision")


def test_costs_and_lineage_are_a_link_away_from_the_page(visit, stack):
    registry = Registry(str(stack.root / "mlflow"))
    version = registry.version("orders", alias=CHAMPION)
    tags, window = registry.tags(version), visit("admin")
    run = stack.until(lambda: stack.call(f"/api/v2/dags/{LINEAGE}/dagRuns")[1]["dag_runs"], "the lineage's run")[0]
    stack.until(lambda: stack.tasks(LINEAGE, run["dag_run_id"])["lineage"] == "success", "the lineage")
    frame = models(window, stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("heading", name="Costs").wait_for()
    costs = frame.locator("#costs tbody tr")
    assert costs.count() == 1 and f"{float(tags['cost_usd']):.4f} USD" in costs.inner_text()
    costs.get_by_role("link", name="USD").first.click()
    report = frame.frame_locator("iframe.report")
    report.get_by_role("heading", name=f"Costs: {TRAIN}, {STATE['run']}").wait_for()
    row = report.locator("tbody tr").all_inner_texts()
    assert [line.split("\t") for line in row] == [["train", "training on 1 worker, on demand", tags["cost_usd"]]]

    frame.get_by_role("link", name="← orders").click()
    frame.locator("#data").get_by_role("link", name=tags["snapshot_id"]).click()
    report.get_by_role("heading", name="Lineage of orders version 1").wait_for()
    for tag in ("snapshot_id", "sample_manifest", "days_train", "digest", "run_id", "auc"):
        assert tags[tag] in report.locator("tr", has=report.get_by_role("cell", name=tag, exact=True)).inner_text()
    assert "is still there: 2,400 rows of these days, the same now" in words(report)
    assert "challenger" in words(report) and "champion" in words(report)
    shoot(window, "lineage")

    window.goto(f"{stack.url}/dags/{LINEAGE}/runs/{run['dag_run_id']}/tasks/lineage/details")
    window.get_by_role("link", name="Lineage", exact=True).click()
    alone = window.frame_locator("iframe.report")
    alone.get_by_role("heading", name="Lineage of orders version 1").wait_for()


def test_nothing_is_lost_in_a_narrow_window(visit, stack):
    window = visit("admin")
    window.set_viewport_size({"width": 620, "height": 1000})
    try:
        frame = models(window, stack)
        frame.get_by_role("link", name="orders", exact=True).click()
        frame.get_by_role("heading", name="Nights").wait_for()
        root = "document.documentElement"
        assert frame.locator("body").evaluate(f"() => {root}.scrollWidth <= {root}.clientWidth")
        box = frame.locator("#nights a[aria-label^='" + str(DAYS[-1]) + "']").last.bounding_box()
        assert box["x"] + box["width"] <= 620, "the last night of the heat map is seen without scrolling"
    finally:
        window.set_viewport_size({"width": 1440, "height": 1000})


def test_who_may_only_look_sees_the_page_and_starts_nothing(visit, stack):
    frame = models(visit("vera"), stack)
    frame.get_by_role("link", name="orders", exact=True).click()
    frame.get_by_role("heading", name="Versions").wait_for()
    assert stack.call(f"/api/v2/dags/{TRAIN}/dagRuns", {"logical_date": None, "conf": {}}, user="vera")[0] == 403
    anonymous = visit("vera").context.browser.new_context()
    assert anonymous.request.get(f"{stack.url}/sml/models/orders").status == 401
    anonymous.close()
