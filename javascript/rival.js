// What the panel needs from the browser: presets in its storage, the open tabs, the progress of a check.

// `var`: if the extension is installed twice, the page loads this file twice, and the first one stays in use
var rival = globalThis.rival ?? (() => {
    const STORAGE_KEY = "rival-presets";

    // gradio 4 wants a name and a value for each choice
    const choice = (name) => (gradio_config.version.startsWith("3.") ? name : [name, name]);

    // fields: the names of the fields in the order of the values that gradio passes
    // builtIn: for each mode the built-in presets, which set some of the fields
    // added: the fields that presets of before did not have, with the values that acted then
    const presets = ({fields, builtIn, added}) => {
        const titles = Object.keys(builtIn.variation);
        const byField = (values, names = fields) => Object.fromEntries(names.map((name, index) => [name, values[index]]));
        const fieldsBefore = fields.filter((name) => !Object.hasOwn(added, name));
        // presets of before are lists of values, and can have a name that is built in now
        const current = ([name, values]) => [
            titles.includes(name) ? `${name} (yours)` : name,
            Array.isArray(values) ? {...byField(values, fieldsBefore), ...added} : values,
        ];
        const read = () => Object.fromEntries(Object.entries(stored()).map(current));
        const stored = () => JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "{}");
        const write = (own) => localStorage.setItem(STORAGE_KEY, JSON.stringify(own));
        const show = (value, sentence = "") => [
            {__type__: "update", value, choices: [...titles, ...Object.keys(read()).sort()].map(choice)},
            sentence,
        ];
        return {
            // gradio passes the values of the inputs, then the present values of the outputs
            list: (name) => show(name),
            save: (name, ...values) => {
                const title = (name ?? "").trim();
                if (titles.includes(title)) {
                    return show(title, `The preset ${title} is built in: save yours under another name.`);
                }
                if (title) write({...read(), [title]: byField(values)});
                return show(title);
            },
            remove: (name) => {
                if (titles.includes(name)) return show(name, `The preset ${name} is built in and stays.`);
                const {[name]: _, ...others} = read();
                write(others);
                return show("");
            },
            apply: (name, ...values) => {
                const present = byField(values);
                const known = {...read(), ...builtIn[present.mode]};
                // hasOwn: every object has names like "constructor", which are no presets
                const chosen = Object.hasOwn(known, name) ? known[name] : {};
                return fields.map((field) => chosen[field] ?? present[field]);
            },
        };
    };

    // the element that the user clicked or typed into last
    let touched = null;
    for (const kind of ["click", "input"]) {
        document.addEventListener(kind, ({target}) => { touched = target; }, true);
    }
    const isByHand = (id) => gradioApp().getElementById(id).contains(touched);

    // Calls of a function, by the id of the control that counts them and makes one when its number rises. `on_any` in
    // gradio_compat.py says why they are made one at a time.
    const calls = {};
    const next = (call) => {
        if (call.isWanted && !call.isUnderWay) {
            Object.assign(call, {isWanted: false, isUnderWay: true, count: call.count + 1});
        }
        // neither null nor the number of before makes a call
        return call.count || null;
    };
    const ask = (id, isWanted) => {
        const call = (calls[id] ??= {isWanted: false, isUnderWay: false, count: 0});
        call.isWanted ||= isWanted;
        return next(call);
    };
    const askAgain = (id) => next(Object.assign(calls[id], {isUnderWay: false}));

    const openTab = (id) => (gradioApp().getElementById(id) ? get_tab_index(id) : 0);
    const isImg2img = () => gradioApp().getElementById("tab_img2img")?.style.display !== "none";

    // replaces the first two arguments by the open image tab and the open tab of sizes, which only the page knows
    const withTabs = (imageTab, sizeTab, ...others) =>
        isImg2img() ? [openTab("mode_img2img"), openTab("img2img_tabs_resize"), ...others] : [0, 0, ...others];

    // Forge's canvas gives the server pixels only, but shows the file itself, which holds the generation parameters
    const filesIn = (part) => [...gradioApp().querySelectorAll(`${part} .forge-image`)]
        .filter((image) => image.getAttribute("src"));
    const isVisible = ({offsetParent}) => offsetParent !== null;
    // replaces the first argument by the exemplar's file, empty without such a canvas; then as withTabs
    const withFile = (_, ...others) => {
        const exemplar = filesIn(`#${isImg2img() ? "img2img" : "txt2img"}_rival_exemplar`);
        const [first] = [...exemplar, ...filesIn("#mode_img2img").filter(isVisible)];
        return [first?.src ?? "", ...withTabs(...others)];
    };

    // starts a task as the WebUI starts its own: with its progress bar, preview, Interrupt and Skip
    const startCheck = (task, ...others) => {
        const tab = isImg2img() ? "img2img" : "txt2img";
        const [id, gallery] = [randomId(), gradioApp().getElementById(`${tab}_gallery`)];
        showSubmitButtons(tab, false);
        requestProgress(id, gradioApp().getElementById(`${tab}_gallery_container`), gallery, () =>
            showSubmitButtons(tab, true));
        return [id, ...withTabs(...others)];
    };

    // gradio 3: a new image in a sketch has no mask yet, and the server cannot read such a value
    const withMask = (sketch) => [sketch?.image ? {...sketch, mask: sketch.mask ?? sketch.image} : null];

    const show = (tab) => () => {
        const button = [...gradioApp().querySelectorAll("#tabs > .tab-nav > button")]
            .find(({textContent}) => textContent.trim() === tab);
        button?.click();
        const exemplars = gradioApp().getElementById(`${tab}_rival_exemplars`);
        const label = exemplars?.querySelector(".label-wrap");
        if (label && !label.classList.contains("open")) label.click();
        exemplars?.scrollIntoView({block: "center", behavior: "smooth"});
        return [];
    };

    // the WebUI's progress bar says what RIVAL is doing, its page title says only the percentage: add it there
    const nameInTitle = () => {
        const bar = gradioApp().querySelector(".progressDiv > .progress")?.textContent ?? "";
        const [doing] = bar.match(/^(Inverting|Reconstructing) \d+\/\d+/) ?? [];
        if (doing && !document.title.includes(doing)) document.title = document.title.replace("[", `[${doing} `);
    };
    onUiLoaded(() => new MutationObserver(nameInTitle).observe(document.querySelector("title"), {childList: true}));

    return {
        ...{presets, isByHand, ask, askAgain, withTabs, withFile, startCheck, withMask},
        ...{showTxt2img: show("txt2img"), showImg2img: show("img2img")},
    };
})();
