// What GitOps tools say of objects: kstatus, Flux with healthCheckExprs, Argo CD with a health check in Lua.
// Reads {"lua", "expressions": {"current", "inProgress", "failed"}, "objects": {name: object}} from its standard input,
// writes {name: {"kstatus", "flux", "argo", "message"}}.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type request struct {
	Lua         string                           `json:"lua"`
	Expressions kustomize.HealthCheckExpressions `json:"expressions"`
	Objects     map[string]json.RawMessage       `json:"objects"`
}

type answer struct {
	Kstatus string `json:"kstatus"`
	Flux    string `json:"flux"`
	Argo    string `json:"argo"`
	Message string `json:"message"`
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	var asked request
	check(json.NewDecoder(os.Stdin).Decode(&asked))
	evaluator, err := cel.NewStatusEvaluator(&asked.Expressions)
	check(err)
	answers := map[string]answer{}
	for name, text := range asked.Objects {
		var object unstructured.Unstructured
		check(object.UnmarshalJSON(text)) // numbers as the API machinery has them
		computed, err := status.Compute(&object)
		check(err)
		evaluated, err := evaluator.Evaluate(context.Background(), &object)
		check(err)
		health, message := argo(asked.Lua, object.Object)
		answers[name] = answer{computed.Status.String(), evaluated.Status.String(), health, message}
	}
	check(json.NewEncoder(os.Stdout).Encode(answers))
}

// As Argo CD does it: the object is `obj`, and the script returns a table with status and message.
func argo(script string, object map[string]any) (string, string) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		check(state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)))
	}
	state.SetGlobal("obj", value(state, object))
	check(state.DoString(script))
	returned, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		log.Fatalf("the script returns no table")
	}
	return returned.RawGetString("status").String(), returned.RawGetString("message").String()
}

func value(state *lua.LState, given any) lua.LValue {
	switch it := given.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range it {
			table.RawSetString(key, value(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range it {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(it)
	case bool:
		return lua.LBool(it)
	case int64:
		return lua.LNumber(it)
	case float64:
		return lua.LNumber(it)
	}
	return lua.LNil
}
